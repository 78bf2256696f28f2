// Registers the implementation for CPUs; that for GPUs registers itself in cuda/ms_deform_attn.cu.
#include "ms_deform_attn.h"

#include <torch/library.h>

TORCH_LIBRARY_IMPL(mask2former, CPU, library) {
  library.impl("ms_deform_attn_forward", &mask2former::cpu::ms_deform_attn_forward);
  library.impl("ms_deform_attn_backward", &mask2former::cpu::ms_deform_attn_backward);
}
