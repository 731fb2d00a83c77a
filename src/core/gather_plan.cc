// SPDX-License-Identifier: Apache-2.0
// Geometry of gather.h: which classes of outputs, slabs and tasks; and what they are expected to cost.
#include <algorithm>
#include <cstdint>

#include "gather.h"
#include "parallel.h"

namespace tconv {
namespace {

constexpr i64 kSumsBytes = 384 << 10;                  // sums of a task: with a part of the weights they fit a second-level cache
constexpr i64 kInputBytes = 1 << 20;                   // transposed inputs of a task; a part of the channels is in use at a time
constexpr i64 kFewSlabs = 8, kFewSums = 32 << 10;      // slabs of a single map, unless the sums of a slab took fewer bytes
constexpr i64 kFewBlocks = 4;                          // tasks of a layer with more weights than inputs
constexpr double kManyReads = 4;                       // of inputs, by all blocks and phases, for one of weights
constexpr double kTaskImages = 0.05;                   // of its images, a task takes as long as so many for weights and pointers
constexpr i64 kManyTaps = 16, kManyTapsChannels = 32;  // of a phase; and channels, so that taps are added up one or a few at a time
constexpr double kTurned = 0.3;                        // cycles of an input that is transposed
constexpr i64 kLongRow = 6;                            // outputs of a row that are read in steps
// What counts of products, of pointers that are worked out, of what is moved and of weights that a cache holds where caches keep pace. (By
// the input all counts as elsewhere, measured.)
constexpr double kQuickTerms = 1.04, kQuickListed = 0.55, kQuickMoved = 0.57, kQuickRead = 0.3;

// Classes of outputs begin .. end - 1 of one axis. Neighbours join while a class has fewer than `fewest` outputs, which would make tiles
// too low.
std::vector<Gather::Class> make_classes(const StencilAxis& a, i64 begin, i64 end, i64 fewest) {
  std::vector<Gather::Class> found;
  for (i64 phase = a.out_begin; phase < a.out_end; ++phase) {
    const std::size_t first = found.size();  // classes of other phases read other taps and never join
    for (i64 o = begin + floor_mod(phase - a.out_lo - begin, a.out_stride); o < end; o += a.out_stride) {
      std::vector<Tap> taps;
      for (const Tap& t : a.taps)
        if (const i64 at = input_of(a, o, t); t.out_phase == phase && at >= 0 && at < a.in_size) taps.push_back(t);
      const auto same = [&](const Gather::Class& c) {
        return std::equal(c.taps.begin(), c.taps.end(), taps.begin(), taps.end(),
                          [](const Tap& x, const Tap& y) { return x.tap == y.tap; });
      };
      auto home = std::find_if(found.begin() + i64(first), found.end(), same);
      if (home == found.end() && found.size() > first && i64(found.back().outputs.size()) < fewest) {
        home = found.end() - 1;
        for (const Tap& t : taps)
          if (std::none_of(home->taps.begin(), home->taps.end(), [&](const Tap& x) { return x.tap == t.tap; })) home->taps.push_back(t);
      }
      if (home == found.end()) home = found.insert(found.end(), Gather::Class{{}, std::move(taps)});
      home->outputs.push_back(o);
    }
  }
  return found;
}

// Whether phases have so many taps that most outputs are near a border, and read other taps than their neighbours: they are one class
// then, whose weights are read once, and tiles leave out the taps that none of their rows reads.
bool all_border(const StencilAxis& a, i64 channels) {
  const i64 taps = ceil_div(a.kernel, a.out_stride);
  return taps >= kManyTaps && a.in_size < 2 * taps && channels >= kManyTapsChannels;
}

// The part of a class's outputs and taps whose inputs exist.
double part_inside(const StencilAxis& a, const Gather::Class& c) {
  i64 inside = 0;
  for (i64 o : c.outputs)
    inside +=
        std::count_if(c.taps.begin(), c.taps.end(), [&](const Tap& t) { return input_of(a, o, t) >= 0 && input_of(a, o, t) < a.in_size; });
  return double(inside) / double(std::max<std::size_t>(1, c.outputs.size() * c.taps.size()));
}

// Whether a class's outputs follow one another, and read inputs that do, at even steps: those of merged classes may not.
bool even_steps(const StencilAxis& a, const Gather::Class& c) {
  for (std::size_t i = 0; i < c.outputs.size(); ++i) {
    if (c.outputs[i] != c.outputs[0] + i64(i) * a.out_stride) return false;
    for (const Tap& t : c.taps) {
      const i64 at = input_of(a, c.outputs[i], t);
      if (at < 0 || at >= a.in_size) return false;
    }
  }
  return true;
}

// Whether inputs are so few beside the weights that tasks are blocks alone: every block and phase reads all inputs then, from a
// second-level cache, but each weight is read once. (Not a matter of the number of threads, which must change no bit.)
bool few_inputs(const Gather& g, double pixels, double element_bytes) {
  const double inputs = double(g.batch) * pixels * double(g.channels);
  double reads = double(g.blocks);
  for (const StencilAxis& a : g.axis) reads *= double(std::min(a.out_stride, a.kernel));
  const double weights = double(g.taps) * double(g.channels) * double(g.blocks) * double(g.block);
  return g.blocks * g.groups >= kFewBlocks && inputs * element_bytes <= double(kInputBytes) && reads * inputs <= kManyReads * weights;
}

}  // namespace

i64 joined_taps(const Gather& g, const Gather::Class& w, i64 pixel) {
  for (std::size_t i = 1; i < w.taps.size(); ++i)
    if (w.taps[i].tap != w.taps[0].tap + i64(i) ||
        input_of(g.axis[2], w.outputs[0], w.taps[i]) != input_of(g.axis[2], w.outputs[0], w.taps[0]) + i64(i))
      return 1;
  return pixel == g.channels ? std::max<i64>(1, i64(w.taps.size())) : 1;
}

Gather::Gather(const Spec& spec, Direction direction, const Isa& isa, int threads_, i64 element_bytes)
    : Blocks((direction == Direction::forward ? spec.out_channels : spec.in_channels) / spec.groups,
             element_bytes == 8 ? isa.f64->lanes : isa.f32->lanes),
      batch(spec.batch),
      groups(spec.groups),
      threads(threads_),
      multiply(isa.multiply),
      quick_caches(isa.quick_caches && direction == Direction::forward) {
  const bool forward = direction == Direction::forward;
  channels = (forward ? spec.in_channels : spec.out_channels) / groups;
  taps = 1;
  for (int i = 0; i < 3; ++i) {
    axis[i] = StencilAxis(spec.axis[i], direction);
    taps *= axis[i].kernel;
  }
  large = output_bytes(axis, batch * spec.groups * outputs, element_bytes) >= double(kStreamBytes);
  std::uint64_t plane_bytes = std::uint64_t(element_bytes);  // modulo 2^64, which is a multiple of what it is divided by
  for (const StencilAxis& a : axis) plane_bytes *= std::uint64_t(a.out_size);
  one_set = lanes > kSetLines && plane_bytes % std::uint64_t(kSetsBytes) == 0;
  cut = axis[0].out_size > 1 ? 0 : axis[1].out_size > 1 ? 1 : 2;
  // Slabs whose inputs and sums of one block fit the caches. In floating point: strides may be any 62-bit number.
  const i64 per_output = axis[0].out_size * axis[1].out_size * axis[2].out_size / axis[cut].out_size;
  const i64 per_input = axis[0].in_size * axis[1].in_size * axis[2].in_size / axis[cut].in_size;
  const double sums_bytes = double(per_output) * double(block * element_bytes);
  const bool one_place = few_inputs(*this, double(per_input) * double(axis[cut].in_size), double(element_bytes)) &&
                         double(batch) * double(axis[cut].out_size) * sums_bytes <= double(kSumsBytes);
  // Enough for a few threads, if they are not too small.
  const double wanted = double(ceil_div(kFewSlabs, std::max<i64>(1, batch * groups)));
  const double by_sums =
      std::min(double(kSumsBytes) / sums_bytes, std::max(double(axis[cut].out_size) / wanted, double(kFewSums) / sums_bytes));
  const double by_input = double(axis[cut].out_stride) * double(kInputBytes) /
                          (double(per_input) * double(channels * element_bytes) * double(axis[cut].in_stride));
  const double most = one_place ? double(axis[cut].out_size) : std::max(std::min(by_sums, by_input), double(axis[cut].out_stride));
  const i64 count = ceil_div(axis[cut].out_size, i64(std::min(most, double(axis[cut].out_size))));
  make_slabs(count > 1 ? std::min(axis[cut].out_size, round_up(count, 2)) : 1);  // an even number: most machines' threads are that
  // Images enough for full tiles, but few enough for the caches and for all threads to have work.
  const i64 input = slab_inputs * channels * element_bytes, sums = slab_outputs * block * element_bytes;
  images = std::max<i64>(1, batch);
  if (!one_place) images = std::min(images, std::max<i64>(1, std::min(kInputBytes / std::max<i64>(input, 1), kSumsBytes / sums)));
  share_out(one_place);
  blocks_at_once = std::clamp<i64>(kSumsBytes / (sums * images), 1, blocks_per_run);
}

void Gather::make_slabs(i64 count) {
  const i64 size = axis[cut].out_size, most = ceil_div(size, count);
  i64 per_output = 1, per_input = 1, fewest[3];  // outputs of a class that fill a tile together with the other axes and images, about
  for (int i = 0; i < 3; ++i) {
    i64 others = batch;
    for (int j = 0; j < 3; ++j) others *= j == i ? 1 : ceil_div(j == cut ? most : axis[j].out_size, axis[j].out_stride);
    fewest[i] = others == 1 && all_border(axis[i], channels) ? axis[i].out_size : ceil_div(kMaxRows, std::max<i64>(others, 1));
    if (i == cut) continue;
    classes[i] = make_classes(axis[i], 0, axis[i].out_size, fewest[i]);
    per_output *= axis[i].out_size, per_input *= axis[i].in_size;
  }
  slab_outputs = slab_inputs = 0;
  for (i64 index = 0; index < count; ++index) {
    const i64 begin = piece_begin(index, count, size), end = piece_begin(index + 1, count, size);
    Slab slab{begin, end, axis[cut].in_size, 0, make_classes(axis[cut], begin, end, fewest[cut]), {}};
    for (const Class& c : slab.classes)
      for (const Tap& tap : c.taps)
        for (i64 o : {c.outputs.front(), c.outputs.back()}) {
          const i64 at = std::clamp<i64>(input_of(axis[cut], o, tap), 0, axis[cut].in_size - 1);
          slab.in_begin = std::min(slab.in_begin, at), slab.in_end = std::max(slab.in_end, at + 1);
        }
    slab.in_begin = std::min(slab.in_begin, slab.in_end);
    slab_outputs = std::max(slab_outputs, (end - begin) * per_output);
    slab_inputs = std::max(slab_inputs, (slab.in_end - slab.in_begin) * per_input);
    slabs.push_back(std::move(slab));
  }
  for (Slab& slab : slabs) {
    const auto list = [&](int i) -> const std::vector<Class>& { return i == cut ? slab.classes : classes[i]; };
    for (const Class& d : list(0))
      for (const Class& h : list(1))
        for (const Class& w : list(2)) slab.triples.push_back({{&d, &h, &w}, i64(w.outputs.size()) >= kLongRow && even_steps(axis[2], w)});
  }
}

// Tasks of `images` at most, or of somewhat fewer where threads end closer together; where images would not feed them, of runs of blocks.
void Gather::share_out(bool one_place) {
  const i64 count = groups * i64(slabs.size());
  if (!one_place) images = std::min(images, std::max<i64>(1, ceil_div(batch * count, 4 * threads)));
  const i64 most = images;
  double lowest = 1e300;
  for (i64 some = most; !one_place && some >= ceil_div(2 * most, 3); --some) {
    const i64 tasks = ceil_div(batch, some) * count;
    if (tasks > kFewTasks * threads) break;
    const double end = last_end(tasks, threads,
                                [&](i64 task) { return kTaskImages * double(most) + double(std::min(some, batch - task / count * some)); });
    if (end < 0.98 * lowest) lowest = end, images = some;
  }
  const i64 tasks = std::max<i64>(1, ceil_div(batch, images) * count);
  // Every run transposes its inputs anew, unless their channels are adjacent.
  double reads = double(taps);
  for (const StencilAxis& a : axis) reads /= double(a.in_stride);
  blocks_per_run = blocks_of_run(all(), tasks, threads, kTurned * double(blocks) / (reads * take(1.1, multiply)));
  runs = ceil_div(blocks, blocks_per_run);
}

double cycles(const Gather& g, bool channels_last) {
  // Outputs of a stride phase lie apart: few of their lines are whole. Channels that fill no vector are copied.
  const bool phases = g.axis[2].out_stride > 1;
  const double copied = channels_last && g.outputs % g.lanes ? 0.5 : 0.0;
  const double turned = (!phases ? 0.3 : g.large ? 0.5 : 0.7) + (g.one_set ? 0.35 : 0.0);
  const double scattered = copied + (channels_last ? (phases ? 0.4 : 0.1) : turned);
  const double read = g.weight_elements() >= kManyWeights ? 0.3 : 0.1;
  double terms = 0, weights = 0, moved = 0, listed = 0;  // listed: pointers of rows, worked out for some images at a time
  const double rounds = double(ceil_div(g.batch, g.images));
  for (const Gather::Slab& s : g.slabs) {
    for (const Gather::Triple& t : s.triples) {
      const i64 rows = t.rows() * g.images, row = i64(t.along[2]->outputs.size()),
                joined = joined_taps(g, *t.along[2], channels_last ? g.channels : g.pixel_pitch());
      // Multiply-adds, or four cycles of latency a tile; a little for pointers and for storing sums.
      const i64 tiles = t.stepped ? rows / row * ceil_div(row, kMaxRows) : ceil_div(rows, kMaxRows);
      double inside = 1;
      for (int i = 0; i < 3; ++i)
        if (all_border(g.axis[i], g.channels)) inside *= part_inside(g.axis[i], *t.along[std::size_t(i)]);
      terms += rounds * inside * double(t.taps()) *
               std::max(g.take(t.stepped ? 1.07 : 1.1, g.multiply) * double(rows), 4.0 * double(g.blocks * tiles));
      weights += rounds * double(t.taps() * g.channels * g.width(0, g.blocks));
      moved += scattered * double(g.batch * t.rows() * g.outputs);
      listed += t.stepped ? rounds * double(g.blocks * tiles) * (30.0 + 20.0 * double(t.taps() / joined))
                          : rounds * double(t.rows()) * (25.0 * double(t.taps()) + 40.0);
    }
    moved += (channels_last ? 0.05 : kTurned) * double(g.batch * (s.in_end - s.in_begin) * g.slab_inputs * g.channels) /
             double(std::max<i64>(1, g.slabs[0].in_end - g.slabs[0].in_begin));
  }
  if (g.quick_caches) {
    terms *= kQuickTerms, listed *= kQuickListed, moved *= kQuickMoved;
    if (g.weight_elements() < kManyWeights) weights *= kQuickRead;
  }
  return double(g.groups) * (terms * double(g.channels) + read * weights + listed + moved);
}

}  // namespace tconv
