// Multi-scale deformable attention for NVIDIA GPUs: kernels and their registration with PyTorch.
//
// Nothing waits for the device: sizes travel as kernel arguments. The backward pass adds to `grad_value` atomically,
// in single precision at least, and in no fixed order: its last bits differ from run to run, which
// torch.use_deterministic_algorithms reports.

#include <ATen/Context.h>
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <climits>
#include <cstdint>
#include <tuple>
#include <type_traits>

#include "ms_deform_attn.cuh"

namespace mask2former::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kMinWidth = 4;  // lanes of the narrowest group
constexpr unsigned kAllLanes = 0xffffffff;

// Storage for the points that the groups of a block exchange, in units of 16 bytes.
//
// All groups of a warp read at once, one point each. A unit between the groups keeps these points in different banks.
template <typename acc_t>
struct Exchange {
  static constexpr int kUnits = sizeof(Corners<acc_t>) / sizeof(uint4);  // of a point
  static constexpr int kUnitsOfWarp = kWarp * kUnits + kWarp / kMinWidth;
  uint4 units[kThreads / kWarp * kUnitsOfWarp];

  __device__ Corners<acc_t>* points_of_group(int width) {
    const int lane = threadIdx.x % kWarp;
    const int group = lane / width;
    const int start = threadIdx.x / kWarp * kUnitsOfWarp + group * (width * kUnits + 1);
    return reinterpret_cast<Corners<acc_t>*>(units + start);
  }
};

__device__ inline void add_four(float* address, const float* x) {
// For vectors, CUDA has it from 12.1 on.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1201
  atomicAdd(reinterpret_cast<float4*>(address), make_float4(x[0], x[1], x[2], x[3]));
#else
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    atomicAdd(address + n, x[n]);
  }
#endif
}

// `width` neighbouring lanes of a warp, a power of two. Lanes that have returned are not waited for.
template <typename acc_t>
struct WarpGroup {
  int width;
  int lane;
  Corners<acc_t>* points;

  __device__ void publish(const Corners<acc_t>& corners) const {
    __syncwarp(kAllLanes);  // what was published before has been read
    points[lane] = corners;
    __syncwarp(kAllLanes);
  }

  __device__ Corners<acc_t> read(int from) const {
    return points[from];
  }

  __device__ acc_t sum(acc_t x) const {
    for (int distance = width / 2; distance > 0; distance /= 2) {
      x += __shfl_xor_sync(kAllLanes, x, distance);
    }
    return x;
  }

  template <int N>
  __device__ static void add(acc_t* address, const acc_t (&values)[N]) {
    if constexpr (std::is_same_v<acc_t, float> && N % 4 == 0) {
#pragma unroll
      for (int n = 0; n < N; n += 4) {
        add_four(address + n, values + n);
      }
    } else {
#pragma unroll
      for (int n = 0; n < N; ++n) {
        atomicAdd(address + n, values[n]);
      }
    }
  }
};

// Each group takes one query and head of each image; blocks of one image are neighbours, so that its values stay in
// the L2 cache.
template <int N, typename scalar_t, typename weight_t>
__global__ void __launch_bounds__(kThreads) forward_kernel(
    const __grid_constant__ Problem problem,
    int batches,
    int width,
    const scalar_t* __restrict__ value,
    const accumulate_t<scalar_t>* __restrict__ locations,
    const weight_t* __restrict__ weights,
    scalar_t* __restrict__ output) {
  using acc_t = accumulate_t<scalar_t>;
  __shared__ Exchange<acc_t> exchange;
  const unsigned item = blockIdx.x * (kThreads / width) + threadIdx.x / width;
  if (item >= static_cast<unsigned>(problem.queries * problem.heads)) {
    return;
  }
  WarpGroup<acc_t> group{width, static_cast<int>(threadIdx.x) % width, exchange.points_of_group(width)};
  for (int batch = blockIdx.y; batch < batches; batch += gridDim.y) {
    forward<N>(group, problem, batch, static_cast<int>(item), value, locations, weights, output);
  }
}

template <int N, typename scalar_t, typename weight_t>
__global__ void __launch_bounds__(kThreads) backward_kernel(
    const __grid_constant__ Problem problem,
    int batches,
    int width,
    const scalar_t* __restrict__ grad_output,
    const scalar_t* __restrict__ value,
    const accumulate_t<scalar_t>* __restrict__ locations,
    const weight_t* __restrict__ weights,
    accumulate_t<scalar_t>* __restrict__ grad_value,
    accumulate_t<scalar_t>* __restrict__ grad_locations,
    weight_t* __restrict__ grad_weights) {
  using acc_t = accumulate_t<scalar_t>;
  __shared__ Exchange<acc_t> exchange;
  const unsigned item = blockIdx.x * (kThreads / width) + threadIdx.x / width;
  if (item >= static_cast<unsigned>(problem.queries * problem.heads)) {
    return;
  }
  WarpGroup<acc_t> group{width, static_cast<int>(threadIdx.x) % width, exchange.points_of_group(width)};
  for (int batch = blockIdx.y; batch < batches; batch += gridDim.y) {
    backward<N>(
        group, problem, batch, static_cast<int>(item), grad_output, value, locations, weights, grad_value,
        grad_locations, grad_weights);
  }
}

struct Launch {
  dim3 blocks;
  int width;  // lanes of a group
};

// As many lanes as there are pieces of N channels, rounded up to a power of two, at most a warp.
Launch plan(const Problem& problem, int64_t batches, int N) {
  int width = kMinWidth;
  while (width < kWarp && width * N < problem.channels) {
    width *= 2;
  }
  const int64_t items = static_cast<int64_t>(problem.queries) * problem.heads;
  const int64_t items_of_block = kThreads / width;
  // A grid holds 65535 blocks in its second dimension; the kernels loop over the images beyond.
  return {
      dim3(
          static_cast<unsigned>((items + items_of_block - 1) / items_of_block),
          static_cast<unsigned>(std::min<int64_t>(batches, 65535))),
      width};
}

// Beyond it, coordinates in single precision do not tell pixels apart.
constexpr int64_t kMaxSide = int64_t(1) << 24;

Problem check_inputs(
    const at::Tensor& value,
    at::IntArrayRef spatial_shapes,
    const at::Tensor& locations,
    const at::Tensor& weights) {
  TORCH_CHECK(
      value.dim() == 4 && locations.dim() == 6 && weights.dim() == 5,
      "expected value (B, S, M, D), sampling_locations (B, Q, M, L, P, 2) and attention_weights (B, Q, M, L, P), not ",
      value.sizes(), ", ", locations.sizes(), " and ", weights.sizes());
  TORCH_CHECK(
      value.device() == locations.device() && value.device() == weights.device(),
      "value, sampling_locations and attention_weights are on different devices: ",
      value.device(), ", ", locations.device(), " and ", weights.device());
  const int64_t B = value.size(0), S = value.size(1), M = value.size(2), D = value.size(3);
  const int64_t Q = locations.size(1), L = locations.size(3), P = locations.size(4);
  TORCH_CHECK(
      locations.sizes() == at::IntArrayRef({B, Q, M, L, P, 2}) && weights.sizes() == at::IntArrayRef({B, Q, M, L, P}),
      "sampling_locations ", locations.sizes(), " and attention_weights ", weights.sizes(),
      " do not fit each other and value ", value.sizes());
  TORCH_CHECK(
      static_cast<int64_t>(spatial_shapes.size()) == 2 * L,
      "expected height and width of ", L, " levels, not ", spatial_shapes.size(), " numbers");
  TORCH_CHECK(
      value.is_floating_point() && locations.is_floating_point() && weights.is_floating_point(),
      "ms_deform_attn takes floating point numbers, not ", value.scalar_type(), ", ", locations.scalar_type(), " and ",
      weights.scalar_type());
  TORCH_CHECK(
      L > 0 && P > 0 && M > 0 && D > 0, "nothing to sample: ", L, " levels, ", P, " points, ", M, " heads of ", D,
      " channels");
  TORCH_CHECK(L <= kMaxLevels, "at most ", kMaxLevels, " levels are supported on CUDA, not ", L);
  TORCH_CHECK(
      B <= INT_MAX && S <= INT_MAX && M * D <= INT_MAX / 8 && Q * M <= INT_MAX && L * P <= INT_MAX / 4,
      "B, S and Q * M must be less than 2^31, L * P less than 2^29 and M * D less than 2^28: value ", value.sizes(),
      ", sampling_locations ", locations.sizes());

  Problem problem{};
  problem.positions = static_cast<int>(S);
  problem.queries = static_cast<int>(Q);
  problem.heads = static_cast<int>(M);
  problem.channels = static_cast<int>(D);
  problem.points = static_cast<int>(L * P);
  problem.points_per_level = static_cast<int>(P);
  int64_t start = 0;
  for (int64_t level = 0; level < L; ++level) {
    const int64_t height = spatial_shapes[2 * level], width = spatial_shapes[2 * level + 1];
    TORCH_CHECK(
        height > 0 && width > 0 && height <= S && width <= S && height <= kMaxSide && width <= kMaxSide,
        "level ", level, " of size ", height, " x ", width, " does not fit ", S, " positions");
    problem.levels[level] = {static_cast<int>(height), static_cast<int>(width), static_cast<int>(start)};
    start += height * width;
    TORCH_CHECK(start <= S, "the levels ", spatial_shapes, " have more positions than value, which has ", S);
  }
  TORCH_CHECK(start == S, "the levels ", spatial_shapes, " have ", start, " positions, but value has ", S);
  return problem;
}

bool aligned(const at::Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
}

// A contiguous tensor whose elements can be loaded 16 bytes at a time: a view may begin anywhere.
at::Tensor prepare(const at::Tensor& tensor, at::ScalarType dtype) {
  const at::Tensor contiguous = tensor.to(dtype).contiguous();
  return aligned(contiguous) ? contiguous : contiguous.clone();
}

// Calls `function` with the types of value and weights, and with the number N of channels to load at a time.
//
// Weights that have neither value's type nor that of the sums are converted to the latter by the caller.
template <typename Function>
void dispatch(const at::Tensor& value, const at::Tensor& weights, const Function& function) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, value.scalar_type(), "ms_deform_attn", [&] {
    constexpr int kVector = 16 / sizeof(scalar_t);
    const auto with_weights = [&](auto weight) {
      using weight_t = decltype(weight);
      if (value.size(3) % kVector == 0) {
        function(scalar_t{}, weight_t{}, std::integral_constant<int, kVector>{});
      } else {
        function(scalar_t{}, weight_t{}, std::integral_constant<int, 1>{});
      }
    };
    if (weights.scalar_type() == value.scalar_type()) {
      with_weights(scalar_t{});
    } else {
      with_weights(accumulate_t<scalar_t>{});
    }
  });
}

struct Inputs {
  at::Tensor value;
  at::Tensor locations;  // in the type of the sums
  at::Tensor weights;    // in the type of value or of the sums
};

Inputs prepare_inputs(const at::Tensor& value, const at::Tensor& locations, const at::Tensor& weights) {
  const at::ScalarType dtype = value.scalar_type();
  const at::ScalarType accumulate = dtype == at::kDouble ? at::kDouble : at::kFloat;
  return {
      prepare(value, dtype),
      prepare(locations, accumulate),
      prepare(weights, weights.scalar_type() == dtype ? dtype : accumulate)};
}

at::Tensor ms_deform_attn_forward(
    const at::Tensor& value,
    at::IntArrayRef spatial_shapes,
    const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights) {
  const Problem problem = check_inputs(value, spatial_shapes, sampling_locations, attention_weights);
  const c10::cuda::CUDAGuard guard(value.device());
  const int64_t B = value.size(0);
  const at::Tensor output =
      at::empty({B, problem.queries, static_cast<int64_t>(problem.heads) * problem.channels}, value.options());
  if (output.numel() == 0) {
    return output;
  }
  const Inputs inputs = prepare_inputs(value, sampling_locations, attention_weights);
  dispatch(inputs.value, inputs.weights, [&](auto scalar, auto weight, auto vector) {
    using scalar_t = decltype(scalar);
    using weight_t = decltype(weight);
    constexpr int N = decltype(vector)::value;
    const Launch launch = plan(problem, B, N);
    forward_kernel<N><<<launch.blocks, kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        problem,
        static_cast<int>(B),
        launch.width,
        inputs.value.const_data_ptr<scalar_t>(),
        inputs.locations.const_data_ptr<accumulate_t<scalar_t>>(),
        inputs.weights.const_data_ptr<weight_t>(),
        output.mutable_data_ptr<scalar_t>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return output;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> ms_deform_attn_backward(
    const at::Tensor& grad_output,
    const at::Tensor& value,
    at::IntArrayRef spatial_shapes,
    const at::Tensor& sampling_locations,
    const at::Tensor& attention_weights) {
  const Problem problem = check_inputs(value, spatial_shapes, sampling_locations, attention_weights);
  const int64_t B = value.size(0);
  TORCH_CHECK(
      grad_output.device() == value.device() &&
          grad_output.sizes() ==
              at::IntArrayRef({B, problem.queries, static_cast<int64_t>(problem.heads) * problem.channels}),
      "grad_output ", grad_output.sizes(), " on ", grad_output.device(), " does not fit value ", value.sizes(), " on ",
      value.device(), " and sampling_locations ", sampling_locations.sizes());
  const c10::cuda::CUDAGuard guard(value.device());
  if (grad_output.numel() == 0) {
    return {
        at::zeros(value.sizes(), value.options()),
        at::zeros(sampling_locations.sizes(), sampling_locations.options()),
        at::zeros(attention_weights.sizes(), attention_weights.options())};
  }
  at::globalContext().alertNotDeterministic("mask2former::ms_deform_attn_backward on CUDA");
  const Inputs inputs = prepare_inputs(value, sampling_locations, attention_weights);
  const at::Tensor grad = prepare(grad_output, value.scalar_type());
  const at::Tensor grad_value = at::zeros(value.sizes(), inputs.locations.options());
  const at::Tensor grad_locations = at::empty_like(inputs.locations);
  const at::Tensor grad_weights = at::empty_like(inputs.weights);
  dispatch(inputs.value, inputs.weights, [&](auto scalar, auto weight, auto vector) {
    using scalar_t = decltype(scalar);
    using weight_t = decltype(weight);
    using acc_t = accumulate_t<scalar_t>;
    constexpr int N = decltype(vector)::value;
    const Launch launch = plan(problem, B, N);
    backward_kernel<N><<<launch.blocks, kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        problem,
        static_cast<int>(B),
        launch.width,
        grad.const_data_ptr<scalar_t>(),
        inputs.value.const_data_ptr<scalar_t>(),
        inputs.locations.const_data_ptr<acc_t>(),
        inputs.weights.const_data_ptr<weight_t>(),
        grad_value.mutable_data_ptr<acc_t>(),
        grad_locations.mutable_data_ptr<acc_t>(),
        grad_weights.mutable_data_ptr<weight_t>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return {
      grad_value.to(value.scalar_type()),
      grad_locations.to(sampling_locations.scalar_type()),
      grad_weights.to(attention_weights.scalar_type())};
}

}  // namespace
}  // namespace mask2former::cuda

TORCH_LIBRARY_IMPL(mask2former, CUDA, m) {
  m.impl("ms_deform_attn_forward", &mask2former::cuda::ms_deform_attn_forward);
  m.impl("ms_deform_attn_backward", &mask2former::cuda::ms_deform_attn_backward);
}
