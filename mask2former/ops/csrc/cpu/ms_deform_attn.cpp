// Checks the arguments, chooses the instruction set and the dtype, and calls the kernel.
#include "../ms_deform_attn.h"

#include <ATen/Version.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty.h>

#include <string>

#include "kernel.h"

namespace mask2former::cpu {
namespace {

// Beyond it, coordinates in single precision do not tell pixels apart.
constexpr int64_t kMaxSide = int64_t(1) << 24;

enum class Capability { kDefault, kAVX2, kAVX512 };

Capability capability() {
  static const Capability result = [] {
    const std::string name = at::get_cpu_capability();  // respects ATEN_CPU_CAPABILITY
    return name == "AVX512" ? Capability::kAVX512 : name == "AVX2" ? Capability::kAVX2 : Capability::kDefault;
  }();
  return result;
}

// Calls f<CAPABILITY>(arguments), of those that were compiled.
#if defined(__x86_64__)
#define MASK2FORMER_CALL(FUNCTION, ...)                      \
  switch (capability()) {                                    \
    case Capability::kAVX512:                                \
      return AVX512::FUNCTION(__VA_ARGS__);                  \
    case Capability::kAVX2:                                  \
      return AVX2::FUNCTION(__VA_ARGS__);                    \
    default:                                                 \
      return DEFAULT::FUNCTION(__VA_ARGS__);                 \
  }
#else
#define MASK2FORMER_CALL(FUNCTION, ...) return DEFAULT::FUNCTION(__VA_ARGS__);
#endif

template <typename F>
void for_dtype(at::ScalarType dtype, const F& f) {
  switch (dtype) {
    case at::kFloat:
      return f(float());
    case at::kDouble:
      return f(double());
    case at::kBFloat16:
      return f(c10::BFloat16());
    case at::kHalf:
      return f(c10::Half());
    default:
      TORCH_CHECK(false, "ms_deform_attn takes floating point values of 16, 32 or 64 bits, not ", dtype);
  }
}

Sizes check(
    const at::Tensor& value,
    at::IntArrayRef spatial_shapes,
    const at::Tensor& locations,
    const at::Tensor& weights) {
  TORCH_CHECK(
      value.dim() == 4 && locations.dim() == 6 && weights.dim() == 5 && spatial_shapes.size() % 2 == 0,
      "ms_deform_attn takes value (B, S, M, D), height and width of L levels, sampling_locations (B, Q, M, L, P, 2) ",
      "and attention_weights (B, Q, M, L, P)");
  const Sizes z{
      value.size(0), value.size(1), value.size(2), value.size(3), locations.size(1),
      static_cast<int64_t>(spatial_shapes.size() / 2), locations.size(4), spatial_shapes.data()};
  TORCH_CHECK(
      value.device() == locations.device() && value.device() == weights.device() && value.is_floating_point() &&
          locations.is_floating_point() && weights.is_floating_point(),
      "ms_deform_attn takes floating point numbers on one device, not ", value.scalar_type(), ", ",
      locations.scalar_type(), " and ", weights.scalar_type());
  TORCH_CHECK(
      z.L > 0 && z.P > 0 && z.M > 0 && z.D > 0, "nothing to sample: ", z.L, " levels, ", z.P, " points, ", z.M,
      " heads of ", z.D, " channels");
  int64_t positions = 0;
  for (int64_t level = 0; level < z.L; ++level) {
    const int64_t height = z.shapes[2 * level], width = z.shapes[2 * level + 1];
    TORCH_CHECK(
        height > 0 && width > 0 && height <= kMaxSide && width <= kMaxSide, "a level has no pixels, or more than ",
        kMaxSide, " a side: ", spatial_shapes);
    positions += height * width;  // at most 2^48 each
    TORCH_CHECK(positions <= z.S, "the levels ", spatial_shapes, " have more positions than value, which has ", z.S);
  }
  TORCH_CHECK(positions == z.S, "the levels ", spatial_shapes, " have ", positions, " positions, but value has ", z.S);
  TORCH_CHECK(z.S < INT32_MAX, "value has ", z.S, " positions, more than can be counted in 32 bits");
  TORCH_CHECK(
      locations.sizes() == at::IntArrayRef({z.B, z.Q, z.M, z.L, z.P, 2}) &&
          weights.sizes() == at::IntArrayRef({z.B, z.Q, z.M, z.L, z.P}),
      "sampling_locations ", locations.sizes(), " and attention_weights ", weights.sizes(), " do not fit value ",
      value.sizes(), " of ", z.L, " levels");
  return z;
}

// The arguments as the kernels want them: contiguous, and of two dtypes.
struct Arguments {
  Arguments(const at::Tensor& value_, const at::Tensor& locations_, const at::Tensor& weights_) {
    const bool exact = value_.scalar_type() == at::kDouble || locations_.scalar_type() == at::kDouble ||
        weights_.scalar_type() == at::kDouble;
    accumulator = exact ? at::kDouble : at::kFloat;
    dtype = exact ? at::kDouble : value_.scalar_type();
    value = value_.to(dtype).contiguous();
    locations = locations_.to(accumulator).contiguous();
    weights = weights_.to(accumulator).contiguous();
  }

  at::ScalarType dtype, accumulator;
  at::Tensor value, locations, weights;
};

}  // namespace

at::Tensor ms_deform_attn_forward(
    const at::Tensor& value,
    at::IntArrayRef spatial_shapes,
    const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights) {
  const Sizes z = check(value, spatial_shapes, sampling_locations, attention_weights);
  const Arguments x(value, sampling_locations, attention_weights);
  const at::Tensor output = at::empty({z.B, z.Q, z.M * z.D}, x.value.options());
  for_dtype(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulator<T>;
    MASK2FORMER_CALL(
        forward<T>, z, x.value.const_data_ptr<T>(), x.locations.const_data_ptr<A>(), x.weights.const_data_ptr<A>(),
        output.mutable_data_ptr<T>())
  });
  return output.to(value.scalar_type());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> ms_deform_attn_backward(
    const at::Tensor& grad_output,
    const at::Tensor& value,
    at::IntArrayRef spatial_shapes,
    const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights) {
  const Sizes z = check(value, spatial_shapes, sampling_locations, attention_weights);
  TORCH_CHECK(
      grad_output.sizes() == at::IntArrayRef({z.B, z.Q, z.M * z.D}) && grad_output.device() == value.device() &&
          grad_output.is_floating_point(),
      "grad_output has shape ", grad_output.sizes(), " and dtype ", grad_output.scalar_type(),
      ", not those of the output");
  const Arguments x(value, sampling_locations, attention_weights);
  const at::Tensor grad = grad_output.to(x.dtype).contiguous();
  const at::Tensor grad_value = at::empty_like(x.value);
  const at::Tensor grad_locations = at::empty_like(x.locations);
  const at::Tensor grad_weights = at::empty_like(x.weights);
  for_dtype(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    using A = Accumulator<T>;
    MASK2FORMER_CALL(
        backward<T>, z, grad.const_data_ptr<T>(), x.value.const_data_ptr<T>(), x.locations.const_data_ptr<A>(),
        x.weights.const_data_ptr<A>(), grad_value.mutable_data_ptr<T>(), grad_locations.mutable_data_ptr<A>(),
        grad_weights.mutable_data_ptr<A>())
  });
  return {
      grad_value.to(value.scalar_type()), grad_locations.to(sampling_locations.scalar_type()),
      grad_weights.to(attention_weights.scalar_type())};
}

}  // namespace mask2former::cpu
