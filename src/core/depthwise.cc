// SPDX-License-Identifier: Apache-2.0
#include "depthwise.h"

#include <algorithm>

#include "parallel.h"
#include "pixels.h"

namespace tconv {
namespace {

constexpr i64 kRowBytes = 32 << 10;    // of output a task, at least
constexpr i64 kMapsBytes = 512 << 10;  // of the maps of a block of channels that are transposed, about
constexpr double kTurned = 0.3;        // cycles of transposing an element,
constexpr double kTurnedNear = 0.2;    // and in a second-level cache
constexpr i64 kBlockBytes = 32 << 10;  // of output that the phases of a row write in turn

// The input that an output reads through a tap; reads() tells whether there is one.
i64 input_of(const StencilAxis& a, i64 output, const Tap& tap) {
  return a.in_stride * ((output + a.out_lo - tap.out_phase) / a.out_stride - tap.shift) + tap.in_phase - a.in_lo;
}
bool reads(const StencilAxis& a, i64 output, const Tap& tap) {
  const i64 at = input_of(a, output, tap);
  return floor_mod(output + a.out_lo, a.out_stride) == tap.out_phase && at >= 0 && at < a.in_size;
}

// The taps that an output of an axis reads.
std::vector<Tap> taps_at(const StencilAxis& a, i64 output) {
  std::vector<Tap> found;
  for (const Tap& t : a.taps)
    if (reads(a, output, t)) found.push_back(t);
  return found;
}

bool same(const std::vector<Tap>& x, const std::vector<Tap>& y) {
  return std::equal(x.begin(), x.end(), y.begin(), y.end(), [](const Tap& s, const Tap& t) { return s.tap == t.tap; });
}

// The operands of a row of output: every row of input that it reads, and of the kernel.
template <class T>
struct Operands {
  std::vector<const T*> x, w;

  void set(const Depthwise& p, i64 od, i64 oh, const View<const T>& in, const T* image, const T* packed) {
    x.clear(), w.clear();
    for (const AxisReads::Read* d = p.reads[0].of(od); d < p.reads[0].of(od + 1); ++d)
      for (const AxisReads::Read* h = p.reads[1].of(oh); h < p.reads[1].of(oh + 1); ++h) {
        x.push_back(image + d->input * in.stride[2] + h->input * in.stride[3]);
        w.push_back(packed + (d->tap * p.axis[1].kernel + h->tap) * p.axis[2].kernel * p.channels);
      }
  }
};

// The taps that a stretch reads as runs. What a run's taps read lies one position apart.
void add_runs(const Depthwise& p, const Depthwise::Stretch& s, i64 column, std::vector<DepthwiseRun>& runs) {
  const StencilAxis& a = p.axis[2];
  std::vector<Tap> taps = s.taps;
  const auto key = [&](const Tap& t) { return std::pair(t.in_phase, input_of(a, s.first, t)); };
  std::sort(taps.begin(), taps.end(), [&](const Tap& x, const Tap& y) { return key(x) < key(y); });
  i64 last = 0, apart = 0;  // the tap before, and how far apart the taps of a run are in the kernel
  for (std::size_t i = 0; i < taps.size(); ++i) {
    const i64 input = input_of(a, s.first, taps[i]), step = taps[i].tap - last;
    const bool next = i > 0 && taps[i].in_phase == taps[i - 1].in_phase && input == input_of(a, s.first, taps[i - 1]) + a.in_stride;
    last = taps[i].tap;
    if (next && runs.back().taps < kMaxRun && (runs.back().taps == 1 || step == apart))
      apart = step, runs.back().w_step = step * p.channels, ++runs.back().taps;
    else
      runs.push_back({input * column, last * p.channels, 0, 1});
  }
}

}  // namespace

AxisReads::AxisReads(const StencilAxis& a) {
  for (i64 o = 0; o < a.out_size; ++o) {
    begin.push_back(i64(all.size()));
    for (const Tap& t : taps_at(a, o)) all.push_back({t.tap, input_of(a, o, t)});
  }
  begin.push_back(i64(all.size()));
}

Depthwise::Depthwise(const Spec& spec, Direction direction, int threads_)
    : batch(spec.batch), channels(spec.groups), taps(1), threads(threads_) {
  for (int i = 0; i < 3; ++i) {
    axis[i] = StencilAxis(spec.axis[i], direction);
    taps *= axis[i].kernel;
    if (i < 2) reads[i] = AxisReads(axis[i]);
  }
  const StencilAxis& w = axis[2];
  for (i64 phase = 0; phase < std::min(w.out_stride, w.out_size); ++phase)
    for (i64 o = phase; o < w.out_size; o += w.out_stride) {
      std::vector<Tap> found = taps_at(w, o);
      if (o > phase && same(stretches.back().taps, found))
        ++stretches.back().count;
      else
        stretches.push_back({o, 1, std::move(found)});
    }
}

double cycles(const Depthwise& p, int lanes, bool channels_last) {
  double terms = 0;
  for (const StencilAxis& a : p.axis) terms = std::max(terms, double(a.taps.size()));
  const double outputs = double(p.batch) * double(p.axis[0].out_size) * double(p.axis[1].out_size) * double(p.axis[2].out_size);
  double each = 1;
  for (const StencilAxis& a : p.axis) each *= double(a.taps.size()) / double(std::max<i64>(1, std::min(a.out_stride, a.kernel)));
  // Fewer channels than lanes are computed by narrower vectors, but transposed one by one.
  while (channels_last && lanes > p.channels) lanes /= 2;
  const i64 vectors = p.channels < lanes ? p.channels : ceil_div(p.channels, lanes);
  const double inputs = double(p.batch) * double(p.axis[0].in_size) * double(p.axis[1].in_size) * double(p.axis[2].in_size);
  const bool near = (inputs + outputs) / double(p.batch) * double(lanes * 4) <= double(kMapsBytes);
  const double turned = channels_last ? 0.0 : (near ? kTurnedNear : kTurned) * (inputs + outputs) * double(p.channels);
  return outputs * double(vectors) * (channels_last ? 1.2 * each + 2 : 1.5 * each + 4) + turned;
}

// Channels become adjacent: squares in registers where the taps of a channel, or of a row of the kernel, are.
template <class T>
void pack_weights(const Depthwise& p, const Kernels<T>& k, View<const T> weight, i64 group_stride, T* packed) {
  const i64 height = p.axis[1].kernel, width = p.axis[2].kernel;
  const bool rows = weight.stride[4] == 1, planes = rows && weight.stride[3] == width && weight.stride[2] == height * width;
  const i64 run = planes ? p.taps : rows ? width : 1;
  for (i64 t = 0; t < p.taps; t += run)
    k.transpose(weight.data + t / width / height * weight.stride[2] + t / width % height * weight.stride[3] + t % width * weight.stride[4],
                group_stride, packed + t * p.channels, p.channels, p.channels, run, nullptr);
}

namespace {

// The runs of every stretch, one after another.
struct Runs {
  std::vector<DepthwiseRun> all;
  std::vector<i64> begin{0};  // [stretch], and the end

  Runs(const Depthwise& p, i64 column) {
    for (const Depthwise::Stretch& s : p.stretches) add_runs(p, s, column, all), begin.push_back(i64(all.size()));
  }
};

// Arrays of some images whose channels are adjacent, `channels` of them, and the weights of those.
template <class T, class S>
struct Adjacent {
  View<const T> in;
  const T* packed;
  Epilogue<T> epilogue;
  View<S> out;
  i64 images, channels;
};

// The outputs [begin, end) of a row, a block at a time, so that what the phases write in turn is still near. What is rounded is summed in
// memory of the thread.
template <class T, class S>
void run_row(const Depthwise& p, const Kernels<T>& k, const Runs& runs, DepthwiseReads<T> r, i64 begin, i64 end, const Adjacent<T, S>& of,
             S* row) {
  constexpr bool rounded = !std::is_same_v<T, S>;
  const i64 stride = p.axis[2].out_stride, column = rounded ? of.channels : of.out.stride[4];
  const i64 block = round_up(std::max<i64>(1, kBlockBytes / (of.channels * stride * i64(sizeof(T)))), 8) * stride;
  for (; begin < end; begin += block) {
    const i64 last = std::min(end, begin + block);
    T* y;
    if constexpr (rounded)
      y = scratch<T>(2, block * column) - begin * column;
    else
      y = row;
    for (std::size_t i = 0; i < p.stretches.size(); ++i) {
      const Depthwise::Stretch& s = p.stretches[i];
      const i64 q = std::clamp<i64>(ceil_div(begin - s.first, stride), 0, s.count);
      const i64 q_end = std::min(s.count, ceil_div(last - s.first, stride));
      r.runs = runs.all.data() + runs.begin[i], r.count = runs.begin[i + 1] - runs.begin[i];
      if (q < q_end) k.depthwise(y + s.first * column, stride * column, r, q, q_end, of.channels, of.epilogue.bias);
    }
    if (of.epilogue.activation != Activation::none)
      for (i64 o = begin; o < last; ++o) k.activate(y + o * column, of.channels, T(0), of.epilogue.activation, of.epilogue.slope);
    if constexpr (rounded)
      scatter_rounded(k, y + begin * column, column, last - begin, column, row + begin * of.out.stride[4], 1, of.out.stride[4]);
  }
}

template <class T, class S>
void run_adjacent(const Depthwise& p, const Kernels<T>& k, const Adjacent<T, S>& of, int threads) {
  const i64 rows = p.axis[0].out_size * p.axis[1].out_size, columns = p.axis[2].out_size;
  const i64 row_bytes = columns * of.channels * i64(sizeof(T)), at_once = std::max<i64>(1, kRowBytes / row_bytes);
  const i64 chunks = ceil_div(rows, at_once);
  // Long rows, as in 1-D, are cut as well.
  const i64 cuts = std::max<i64>(1, std::min(row_bytes / kRowBytes, 4 * threads / std::max<i64>(1, of.images * chunks)));
  const Runs runs(p, of.in.stride[4]);
  parallel_for(of.images * chunks * cuts, threads, [&](i64 task) {
    const i64 image = task / (chunks * cuts), chunk = task / cuts % chunks, cut = task % cuts;
    Operands<T> from;
    for (i64 row = chunk * at_once; row < std::min(rows, (chunk + 1) * at_once); ++row) {
      const i64 od = row / p.axis[1].out_size, oh = row % p.axis[1].out_size;
      from.set(p, od, oh, of.in, of.in.data + image * of.in.stride[0], of.packed);
      const DepthwiseReads<T> reads{i64(from.x.size()), 0, p.axis[2].in_stride * of.in.stride[4], from.x.data(), from.w.data(), nullptr};
      run_row(p, k, runs, reads, cut * columns / cuts, (cut + 1) * columns / cuts, of,
              of.out.data + image * of.out.stride[0] + od * of.out.stride[2] + oh * of.out.stride[3]);
    }
  });
}

// Some channels of one image: those that are not adjacent become so in memory of the thread, and go back from there.
template <class T, class S>
void run_block(const Depthwise& p, const Kernels<T>& k, Adjacent<T, S> of) {
  const auto* a = p.axis;
  const i64 in_size[] = {a[0].in_size, a[1].in_size, a[2].in_size}, out_size[] = {a[0].out_size, a[1].out_size, a[2].out_size};
  const i64 zero[3] = {};
  const auto packed_view = [&](auto* data, const i64* size) {
    const auto at = packed_pixels(data, size, of.channels, zero);
    return View<std::remove_pointer_t<decltype(data)>>{data, {at.image, 1, at.stride[0], at.stride[1], at.stride[2]}};
  };
  if (of.in.stride[1] != 1) {
    T* pixels = scratch<T>(0, in_size[0] * in_size[1] * in_size[2] * of.channels);
    gather_pixels(k, of.in, in_size, of.channels, 1, pixels, of.channels);
    of.in = packed_view(static_cast<const T*>(pixels), in_size);
  }
  if (of.out.stride[1] == 1) return run_adjacent(p, k, of, 1);
  T* sums = scratch<T>(1, out_size[0] * out_size[1] * out_size[2] * of.channels);
  run_adjacent(p, k, Adjacent<T, T>{of.in, of.packed, of.epilogue, packed_view(sums, out_size), of.images, of.channels}, 1);
  scatter_pixels(k, sums, out_size, of.channels, 1, of.channels, of.out, false);
}

// The channels of a block: whole vectors, and both of its arrays in a part of the second-level cache where maps are small enough.
i64 block_channels(const Depthwise& p, i64 lanes, i64 element_bytes) {
  i64 in = element_bytes, out = element_bytes;
  for (const StencilAxis& a : p.axis) in *= a.in_size, out *= a.out_size;
  return std::min(p.channels, round_up(std::max<i64>(1, kMapsBytes / std::max<i64>(1, in + out)), lanes));
}

}  // namespace

template <class T, class S>
void run(const Depthwise& p, const Kernels<T>& k, View<const T> in, const Weights<T>& weights, const Epilogue<T>& epilogue, View<S> out) {
  if (in.stride[1] == 1 && out.stride[1] == 1)
    return run_adjacent(p, k, Adjacent<T, S>{in, weights.packed, epilogue, out, p.batch, p.channels}, p.threads);
  const i64 block = block_channels(p, k.lanes, sizeof(T)), blocks = ceil_div(p.channels, block);
  parallel_for(p.batch * blocks, p.threads, [&](i64 task) {
    const i64 image = task / blocks, first = task % blocks * block;
    Adjacent<T, S> of{in, weights.packed + first, epilogue, out, 1, std::min(block, p.channels - first)};
    of.in.data += image * in.stride[0] + first * in.stride[1];
    of.out.data += image * out.stride[0] + first * out.stride[1];
    if (epilogue.bias) of.epilogue.bias += first;
    run_block(p, k, of);
  });
}

template void pack_weights<float>(const Depthwise&, const Kernels<float>&, View<const float>, i64, float*);
template void pack_weights<double>(const Depthwise&, const Kernels<double>&, View<const double>, i64, double*);
TCONV_RUNS(Depthwise)

}  // namespace tconv
