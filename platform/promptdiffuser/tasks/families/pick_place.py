"""pick-place and pick-place-500: carry a puck to a hidden goal, 50 tasks; 100 and 500 steps.

Constants follow the official Prompt-DT release (mxu34/prompt-dt at 5f665e5): tasks from `metaworld.ML1(name, seed=1)`,
split from config/ML1-pick-place-v2/ML1_pick_place.json, scale and target from prompt_dt/prompt_utils.py `gen_env`, 100
steps from its copy of the environment. The release runs v2 of the environment, here it is v3 (metaworld 3.1.1).
"""

from promptdiffuser.tasks.families.meta_world import MetaWorldTasks, meta_world_family
from promptdiffuser.tasks.family import register

CLASSES = ("pick-place-v3",)
TEST_TASKS = (11, 17, 25, 36, 41)
# Set aside from the published 45 training tasks; metaworld's order is random, so even spacing is as good as any.
VALIDATION_TASKS = (4, 13, 22, 31, 40)

FAMILIES = (
    register(
        meta_world_family(
            MetaWorldTasks("pick-place", "ml1", CLASSES),
            "PromptDiffuser/PickPlace-v0",
            VALIDATION_TASKS,
            TEST_TASKS,
            horizon=100,
            target_return=650.0,
        ),
        place=50,
    ),
    register(
        meta_world_family(
            MetaWorldTasks("pick-place-500", "ml1", CLASSES),
            "PromptDiffuser/PickPlace500-v0",
            VALIDATION_TASKS,
            TEST_TASKS,
        ),
        place=50,
    ),
)
