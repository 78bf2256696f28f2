// Multi-scale deformable attention: the functions that are registered with PyTorch, see mask2former/ops/library.py.
//
// B batch, S positions of all levels, M heads, D head width, Q queries, L levels, P points
// value (B, S, M, D), spatial_shapes [height, width] of each level, joined, sampling_locations (B, Q, M, L, P, 2),
// attention_weights (B, Q, M, L, P), output (B, Q, M * D).
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace mask2former::cpu {

at::Tensor ms_deform_attn_forward(
    const at::Tensor& value,
    at::IntArrayRef spatial_shapes,
    const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights);

// Gradients of value, locations and weights, each of the dtype of what it is the gradient of.
std::tuple<at::Tensor, at::Tensor, at::Tensor> ms_deform_attn_backward(
    const at::Tensor& grad_output,
    const at::Tensor& value,
    at::IntArrayRef spatial_shapes,
    const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights);

}  // namespace mask2former::cpu
