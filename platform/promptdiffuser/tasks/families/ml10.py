"""ml10: Meta-World's ML10, 10 classes of manipulation to learn from and 5 others as test, 50 goals each.

Classes and their order are those of metaworld 3.1.1 (metaworld/env_dict.py `ML10_V3`), the horizon is Meta-World's.
Target and scale are ours: ten a step, the most that the reward can give.
"""

from promptdiffuser.tasks.families.meta_world import unseen_class_family
from promptdiffuser.tasks.family import register

TRAIN_CLASSES = (
    "reach-v3",
    "push-v3",
    "pick-place-v3",
    "door-open-v3",
    "drawer-close-v3",
    "button-press-topdown-v3",
    "peg-insert-side-v3",
    "window-open-v3",
    "sweep-v3",
    "basketball-v3",
)
TEST_CLASSES = ("drawer-open-v3", "door-close-v3", "shelf-place-v3", "sweep-into-v3", "lever-pull-v3")

FAMILY = register(unseen_class_family("ml10", "PromptDiffuser/ML10-v0", TRAIN_CLASSES, TEST_CLASSES), place=70)
