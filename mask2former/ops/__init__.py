"""Operations that PyTorch lacks."""

from .dispatch import backend
from .ms_deform_attn import ms_deform_attn

__all__ = ["backend", "ms_deform_attn"]
