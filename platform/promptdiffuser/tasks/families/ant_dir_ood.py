"""ant-dir-ood: ant-dir with the published split for unseen directions, 8 training and 3 test tasks.

The split follows the official Prompt-DT release (mxu34/prompt-dt at 5f665e5, config/ant_dir/ant_dir_10.json); task ids
are those of ant-dir. The training directions span 142.6° to 340.4°, so of the three test tasks one (1, at 24.4°)
extrapolates and two (4 and 41) interpolate: a mean over the three mixes both, and they are marked.
"""

from dataclasses import replace

from promptdiffuser.tasks.families import ant_dir
from promptdiffuser.tasks.family import register

TRAIN_TASKS = (8, 13, 16, 20, 22, 26, 32, 37)
TEST_TASKS = (1, 4, 41)
# The split leaves 39 directions of ant-dir unused. Five of them, none within 5° of a test direction, are for choosing
# hyper-parameters: like the test tasks one extrapolates (0, at 68.9°), the others interpolate.
VALIDATION_TASKS = (0, 2, 19, 36, 44)

FAMILY = register(
    replace(
        ant_dir.FAMILY,
        name="ant-dir-ood",
        gymnasium_id="PromptDiffuser/AntDirOOD-v0",
        expert_of=ant_dir.FAMILY.name,
        train_tasks=TRAIN_TASKS,
        validation_tasks=VALIDATION_TASKS,
        test_tasks=TEST_TASKS,
        target_return=759.0,  # the highest expert return of one of its training tasks
        extrapolation_tasks=(1,),
    ),
    place=40,
)
