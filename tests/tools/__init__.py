"""Tools for whoever changes the code: `python -m tests.tools.compare_runs` says whether two trainings are the same."""
