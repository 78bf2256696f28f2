// Runs what the CUDA kernels do for each query and head on the host: threads stand for the lanes of a group.

#include <c10/util/BFloat16.h>

#include <barrier>
#include <thread>
#include <vector>

#include "ms_deform_attn.cuh"

namespace {

using namespace mask2former::cuda;

template <typename acc_t>
struct Shared {
  explicit Shared(int width) : barrier(width), points(width), terms(width) {}
  std::barrier<> barrier;
  std::vector<Corners<acc_t>> points;
  std::vector<acc_t> terms;
};

template <typename acc_t>
struct ThreadGroup {
  int width;
  int lane;
  Shared<acc_t>& shared;

  void publish(const Corners<acc_t>& corners) {
    shared.barrier.arrive_and_wait();
    shared.points[lane] = corners;
    shared.barrier.arrive_and_wait();
  }

  Corners<acc_t> read(int from) const {
    return shared.points[from];
  }

  acc_t sum(acc_t x) {
    shared.barrier.arrive_and_wait();
    shared.terms[lane] = x;
    shared.barrier.arrive_and_wait();
    acc_t total = 0;
    for (const acc_t term : shared.terms) {
      total += term;
    }
    return total;
  }

  template <int N>
  void add(acc_t* address, const acc_t (&values)[N]) {
    for (int n = 0; n < N; ++n) {
      address[n] += values[n];
    }
  }
};

// sizes: B, Q, M, D, L, P, then height and width of each level
Problem make_problem(const int* sizes) {
  Problem problem{};
  problem.queries = sizes[1];
  problem.heads = sizes[2];
  problem.channels = sizes[3];
  problem.points = sizes[4] * sizes[5];
  problem.points_per_level = sizes[5];
  for (int level = 0; level < sizes[4]; ++level) {
    const int height = sizes[6 + 2 * level], width = sizes[7 + 2 * level];
    problem.levels[level] = {height, width, problem.positions};
    problem.positions += height * width;
  }
  return problem;
}

template <typename acc_t, typename Work>
void run(const int* sizes, int width, const Work& work) {
  const Problem problem = make_problem(sizes);
  Shared<acc_t> shared(width);
  std::vector<std::thread> lanes;
  for (int lane = 0; lane < width; ++lane) {
    lanes.emplace_back([&, lane] {
      ThreadGroup<acc_t> group{width, lane, shared};
      for (int batch = 0; batch < sizes[0]; ++batch) {
        for (int item = 0; item < problem.queries * problem.heads; ++item) {
          work(group, problem, batch, item);
        }
      }
    });
  }
  for (std::thread& lane : lanes) {
    lane.join();
  }
}

template <int N, typename scalar_t, typename weight_t>
void emulate(const int* sizes, int width, void** tensors) {
  using acc_t = accumulate_t<scalar_t>;
  const auto value = static_cast<const scalar_t*>(tensors[0]);
  const auto locations = static_cast<const acc_t*>(tensors[1]);
  const auto weights = static_cast<const weight_t*>(tensors[2]);
  const auto output = static_cast<scalar_t*>(tensors[3]);
  const auto grad_output = static_cast<const scalar_t*>(tensors[4]);
  run<acc_t>(sizes, width, [&](auto& group, const Problem& problem, int batch, int item) {
    forward<N>(group, problem, batch, item, value, locations, weights, output);
    backward<N>(
        group, problem, batch, item, grad_output, value, locations, weights, static_cast<acc_t*>(tensors[5]),
        static_cast<acc_t*>(tensors[6]), static_cast<weight_t*>(tensors[7]));
  });
}

}  // namespace

// tensors: value, locations, weights, output, grad_output, grad_value, grad_locations, grad_weights
#define EMULATE(name, N, scalar_t, weight_t)                          \
  extern "C" void name(const int* sizes, int width, void** tensors) { \
    emulate<N, scalar_t, weight_t>(sizes, width, tensors);            \
  }

EMULATE(float_1, 1, float, float)
EMULATE(float_4, 4, float, float)
EMULATE(double_2, 2, double, double)
EMULATE(bfloat16_8, 8, c10::BFloat16, c10::BFloat16)
EMULATE(bfloat16_8_float, 8, c10::BFloat16, float)
