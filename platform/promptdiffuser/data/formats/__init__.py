"""Other formats: the published Prompt-DT pickles and MACAW buffers are read, Minari datasets read and written."""
