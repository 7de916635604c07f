from dataclasses import dataclass, field

from vton.config import ModelConfig
from vton.models.settings import UNetConfig


@dataclass
class CanvasConfig(ModelConfig):
    name: str = "canvas"
    unet: UNetConfig = field(default_factory=UNetConfig)
    attention_only: bool = True  # train self-attention alone; the rest stays as it was loaded
    dream: float = 0.0  # power of DREAM (arXiv 2312.00210); 0 = off
