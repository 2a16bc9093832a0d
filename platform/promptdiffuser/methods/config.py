"""Settings of the adaptation methods, composed of what each method's file declares."""

from dataclasses import dataclass, field

from promptdiffuser.methods.adapters import AdaptersConfig
from promptdiffuser.methods.best_of import BestOfConfig
from promptdiffuser.methods.fine_tuning import FineTuningConfig
from promptdiffuser.methods.lora import LoraConfig
from promptdiffuser.methods.nearest_prompt import NearestPromptConfig
from promptdiffuser.methods.prompt_bandit import PromptBanditConfig
from promptdiffuser.methods.prompt_tensor_tuning import PromptTensorTuningConfig
from promptdiffuser.methods.prompt_tuning_dt import PromptTuningDTConfig, PromptTuningDTOnlineConfig
from promptdiffuser.methods.shared.steering import SamplingGuidanceConfig
from promptdiffuser.methods.soft_prompt import SoftPromptConfig
from promptdiffuser.methods.vae_prompt import VaePromptConfig


@dataclass(frozen=True)
class AdaptationConfig:
    """Settings of the adaptation methods; none is chosen on test tasks."""

    nearest_prompt: NearestPromptConfig = field(default_factory=NearestPromptConfig)
    vae_prompt: VaePromptConfig = field(default_factory=VaePromptConfig)
    best_of: BestOfConfig = field(default_factory=BestOfConfig)
    guided: SamplingGuidanceConfig = field(default_factory=SamplingGuidanceConfig)
    prompt_tensor_tuning: PromptTensorTuningConfig = field(default_factory=PromptTensorTuningConfig)
    soft_prompt: SoftPromptConfig = field(default_factory=SoftPromptConfig)
    prompt_tuning_dt: PromptTuningDTConfig = field(default_factory=PromptTuningDTConfig)
    prompt_tuning_dt_online: PromptTuningDTOnlineConfig = field(default_factory=PromptTuningDTOnlineConfig)
    prompt_bandit: PromptBanditConfig = field(default_factory=PromptBanditConfig)
    adapters: AdaptersConfig = field(default_factory=AdaptersConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    fine_tuning: FineTuningConfig = field(default_factory=FineTuningConfig)
