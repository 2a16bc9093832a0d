"""Settings of the adaptation methods, composed of what each method's file declares."""

from dataclasses import dataclass, field

from promptdiffuser.learning.steering import SamplingGuidanceConfig
from promptdiffuser.methods.best_of import BestOfConfig
from promptdiffuser.methods.prompt_tensor_tuning import PromptTensorTuningConfig
from promptdiffuser.methods.soft_prompt import SoftPromptConfig


@dataclass(frozen=True)
class AdaptationConfig:
    """Settings of the adaptation methods; none is chosen on test tasks."""

    best_of: BestOfConfig = field(default_factory=BestOfConfig)
    guided: SamplingGuidanceConfig = field(default_factory=SamplingGuidanceConfig)
    prompt_tensor_tuning: PromptTensorTuningConfig = field(default_factory=PromptTensorTuningConfig)
    soft_prompt: SoftPromptConfig = field(default_factory=SoftPromptConfig)
