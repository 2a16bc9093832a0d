"""reach and reach-500: bring the hand to a hidden goal, 50 tasks; 100 and 500 steps.

Prompt-DT's release has neither tasks nor a split for reach, so both are chosen like pick-place's: the tasks of
`metaworld.ML1("reach-v3", seed=1)` and the same task ids in each split. At 100 steps, target and scale are ours: ten a
step, the most that the reward can give.
"""

from promptdiffuser.tasks.families.meta_world import MetaWorldTasks, meta_world_family
from promptdiffuser.tasks.families.pick_place import TEST_TASKS, VALIDATION_TASKS
from promptdiffuser.tasks.family import register

CLASSES = ("reach-v3",)

FAMILIES = (
    register(
        meta_world_family(
            MetaWorldTasks("reach", "ml1", CLASSES),
            "PromptDiffuser/Reach-v0",
            VALIDATION_TASKS,
            TEST_TASKS,
            horizon=100,
            target_return=1000.0,
        ),
        place=60,
    ),
    register(
        meta_world_family(
            MetaWorldTasks("reach-500", "ml1", CLASSES),
            "PromptDiffuser/Reach500-v0",
            VALIDATION_TASKS,
            TEST_TASKS,
        ),
        place=60,
    ),
)
