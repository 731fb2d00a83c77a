// SPDX-License-Identifier: Apache-2.0
// How the weight's gradient is cut: lanes, the channels of a task, and its boxes of positions.
#include <algorithm>
#include <cmath>

#include "grad_weight.h"
#include "plan.h"

namespace tconv {
namespace {

// What a task's sums, and each of its two panels, may take of a core's second-level cache.
constexpr i64 kSumsBytes = 1024 << 10, kPanelBytes = 512 << 10;
constexpr i64 kFewPositions = 64, kManyPositions = 4096;  // of a box
// Weights small enough to be kept once a span, and the most spans: threads enough, and sums that round like a tree. Larger weights have
// spans while all of these are a small part of what is read, and of a workspace.
constexpr i64 kSpanBytes = 256 << 10, kSpans = 16, kSpannedBytes = 8 << 20;
constexpr double kSpannedPart = 1.0 / 16;
// Positions of rows that may be read where they lie in dy, and the most blocks of lanes that read them anew: of adjacent columns, and of
// channels, which lie one pixel apart.
constexpr i64 kLongRow = 16, kBlocksOfRows = 8, kBlocksOfPixels = 4;
constexpr double kCyclesPerThread = 2.5e5, kAlongPerThread = 1e5;  // work that is worth waking another thread for, and sums of their own

// Outputs that a position of x brings into the panel of one channel of dy.
double outputs_per_position(const GradWeight& p) { return double(p.phases.size()) * double(p.axis[0].stride) * double(p.axis[1].stride); }

// The channels of a task. x is packed once for every chunk of output channels and dy once for every chunk of input channels, so the chunks
// are balanced by what the two cost.
void choose_channels(GradWeight& p, double room, double panel) {
  const double per_pair = double(p.taps) * double(p.lanes);
  const auto clamp = [](double wanted, i64 most) { return i64(std::clamp(wanted, 1.0, double(most))); };
  p.outputs_at_once = clamp(std::sqrt(room / (double(p.taps) * outputs_per_position(p))), p.outputs);
  p.blocks_at_once = clamp(room / (per_pair * double(p.outputs_at_once)), p.blocks);
  p.outputs_at_once = clamp(room / (per_pair * double(p.blocks_at_once)), p.outputs);
  p.blocks_at_once = even(p.blocks, p.blocks_at_once);
  if (p.outputs_at_once > kMaxRows) p.outputs_at_once = std::min(p.outputs, round_up(even(p.outputs, p.outputs_at_once), 8));  // good tiles
  p.groups_at_once = 1;
  if (p.outputs_at_once < p.outputs || p.blocks_at_once < p.blocks) return;
  const double positions = std::min(1024.0, double(p.batch) * double(p.axis[0].size) * double(p.axis[1].size) * double(p.axis[2].size));
  const double a_group = std::max({per_pair * double(p.outputs * p.blocks) * panel / room, positions * double(p.blocks * p.lanes),
                                   positions * double(p.outputs) * outputs_per_position(p)});
  p.groups_at_once = even(p.groups, clamp(panel / std::max(a_group, 1.0), p.groups));
}

// Boxes: columns, then rows, depth and images while the panels fit. Short rows cost pointers, few rows of them halo.
void choose_boxes(GradWeight& p, double panel) {
  Reaches &d = p.axis[0], &h = p.axis[1], &w = p.axis[2];
  const double channels =
      double(p.groups_at_once) * std::max(double(p.blocks_at_once * p.lanes), double(p.outputs_at_once) * outputs_per_position(p));
  const i64 room = i64(std::clamp(panel / channels, double(kFewPositions), double(kManyPositions)));
  const double halo = h.size > 1 ? std::max(0.0, double(h.high - h.low + 1 - h.stride) / double(h.stride)) : 0.0;
  double lowest = 1e300;
  const i64 least = ceil_div(w.size, room);
  for (i64 pieces = least; pieces <= std::max(least, ceil_div(w.size, 32)); ++pieces) {
    const i64 columns = pieces > 1 ? round_up(ceil_div(w.size, pieces), 16) : w.size, rows = std::clamp<i64>(room / columns, 1, h.size);
    const double cost = (double(columns + w.halo()) + 6) * (double(rows) + halo) / double(columns * rows);
    if (cost < 0.99 * lowest) lowest = cost, w.box = columns, h.box = rows;
  }
  h.box = even(h.size, h.box);
  d.box = even(d.size, std::clamp<i64>(room / (w.box * h.box), 1, d.size));
  p.box_batch = even(std::max<i64>(p.batch, 1), room / (w.box * h.box * d.box));
  p.boxes = ceil_div(p.batch, p.box_batch);
  for (const Reaches& a : p.axis) p.boxes = a.taps.empty() ? 0 : p.boxes * ceil_div(a.size, a.box);
}

// More and smaller tasks where threads would have none: those that repeat the least packing first.
void share_out(GradWeight& p) {
  const i64 wanted = p.threads > 1 ? 4 * p.threads : 1;
  const auto tasks = [&] { return p.chunks() * p.spans; };
  while (p.groups_at_once > 1 && tasks() < wanted) p.groups_at_once = ceil_div(p.groups_at_once, 2);
  const double rows = double(p.outputs) * outputs_per_position(p), lanes = double(p.blocks * p.lanes);
  for (bool shared = true; shared && tasks() < wanted;) {
    const bool by_blocks = p.blocks_at_once * p.lanes >= 128;
    const bool by_outputs = p.outputs_at_once * p.taps >= 8 * kMaxRows && p.outputs_at_once >= 2;
    shared = by_blocks || by_outputs;
    if (by_blocks && (!by_outputs || rows <= lanes))
      p.blocks_at_once = ceil_div(p.blocks_at_once, 2);
    else if (by_outputs)
      p.outputs_at_once = ceil_div(p.outputs_at_once, 2);
  }
}

// Of vectors along w: the run of a row, a vector of it, an element of either side (of arrays past the caches twice), and a group.
constexpr double kRunCycles = 5.3, kAlongCycles = 1.43, kElementCycles = 0.3, kGroupCycles = 300;

double estimate_along(const GradWeight& p) {
  const Reaches &d = p.axis[0], &h = p.axis[1], &w = p.axis[2];
  const auto joined = [](const Reaches& a) {
    double all = 0;
    for (const Reach& t : a.taps) all += double(t.end - t.begin);
    return all;
  };
  const double inputs = double(p.batch * p.groups * p.inputs), outputs = double(p.batch * p.groups * p.outputs);
  const double runs = inputs * double(p.outputs) * joined(d) * joined(h) * double(w.taps.size());
  const double elements =
      inputs * double(d.size) * double(h.size) * double(w.size) + outputs * double(d.output) * double(h.output) * double(w.output);
  const bool near = elements * double(p.element_bytes) <= double(kStreamBytes);
  return runs * (kRunCycles + kAlongCycles * double(ceil_div(w.size, p.width))) + (near ? 1 : 2) * kElementCycles * elements +
         kGroupCycles * double(p.groups);
}

// Two vectors of multiply-adds a cycle, some of which wait for loads, more where taps along three axes read boxes again from a second-level
// cache; the run of a row; packing, once for every chunk of the other side.
double estimate(const GradWeight& p, bool rows_lie) {
  if (!p.vectors) return estimate_along(p);
  const double vectors = double(p.groups * p.blocks * std::max<i64>(p.vectors, 1)), rows = double(p.groups * p.outputs) / double(p.width);
  double products = double(p.batch * p.outputs) * vectors, x = double(p.batch) * vectors, dy = double(p.batch) * rows;
  for (const Reaches& a : p.axis) {
    double joined = 0;
    for (const Reach& t : a.taps) joined += double(t.end - t.begin);
    products *= joined, x *= double(a.size), dy *= double(a.size) * double(a.stride);
  }
  const double row = std::min(double(p.axis[2].size), double(p.part));  // what lies beyond the border along a row is multiplied as well
  const bool deep = std::all_of(p.axis, p.axis + 3, [](const Reaches& a) { return a.taps.size() > 1; });
  return (products_take(0.5, 0.58, p.isa.multiply) + 1.8 / row + (deep ? 0.35 : 0)) * products + 4 * x * double(p.output_chunks()) +
         (rows_lie ? 4 : 8) * dy * double(p.block_chunks()) + 1.5 * vectors * double(p.outputs * p.taps);
}

// How many spans there are: of small weights always some, of larger ones as many as are cheap to keep.
i64 span_count(const GradWeight& p) {
  const double weights = double(p.groups) * double(p.outputs * p.taps) * double(p.blocks * p.lanes) * double(p.element_bytes);
  if (weights <= double(kSpanBytes)) return std::clamp<i64>(p.boxes, 1, kSpans);
  const double positions = double(p.batch * p.groups) * double(p.axis[0].size) * double(p.axis[1].size) * double(p.axis[2].size);
  const double read = positions * (double(p.inputs) + double(p.outputs) * outputs_per_position(p)) * double(p.element_bytes);
  const double most = std::min(double(kSpannedBytes), kSpannedPart * read) / weights;
  return std::clamp<i64>(i64(most), 1, std::min(std::max<i64>(p.boxes, 1), kSpans));
}

}  // namespace

Reaches::Reaches(const Axis& a) : size(a.size), output(a.output()), stride(a.stride), kernel(a.kernel) {
  for (i64 t = 0; t < kernel; ++t) {
    const i64 reach = t * a.dilation - a.lo;
    const i64 begin = std::max<i64>(0, ceil_div(-reach, stride)), end = std::min(size, floor_div(output - 1 - reach, stride) + 1);
    if (begin < end) taps.push_back({t, reach, begin, end});
  }
  low = taps.empty() ? 0 : taps.front().reach;
  high = taps.empty() ? 0 : taps.back().reach;
}

bool Reaches::inside() const {
  return i64(taps.size()) == kernel && std::all_of(taps.begin(), taps.end(), [&](const Reach& t) { return !t.begin && t.end == size; });
}

i64 block_vectors(i64 inputs, i64 width) {
  // Cycles of a position and twelve rows: loads count as well, and along w every row is loaded, often across two lines.
  const double two = 12.6 * double(ceil_div(inputs, 2 * width)), one = 6.9 * double(ceil_div(inputs, width)),
               along = 14.0 / double(width) * double(inputs);
  return along < std::min(one, two) ? 0 : one < two ? 1 : 2;
}

GradWeight::GradWeight(const Spec& spec, const Isa& isa_, int threads_, i64 bytes, const i64 (&dy)[5], bool images_last_)
    : batch(spec.batch),
      groups(spec.groups),
      inputs(spec.in_channels / groups),
      outputs(spec.out_channels / groups),
      taps(1),
      images_last(images_last_),
      isa(isa_),
      element_bytes(bytes) {
  width = element_bytes == 8 ? isa.f64->lanes : isa.f32->lanes;
  vectors = block_vectors(inputs, width);
  lanes = vectors ? vectors * width : 1;
  blocks = ceil_div(inputs, lanes);
  part = vectors ? kTerms : 4 * kTerms;
  for (int i = 0; i < 3; ++i) {
    axis[i] = Reaches(spec.axis[i]);
    taps *= axis[i].kernel;
  }
  for (const Reach& t : axis[2].taps) phases.push_back(axis[2].phase(t));
  std::sort(phases.begin(), phases.end());
  phases.erase(std::unique(phases.begin(), phases.end()), phases.end());
  // All phases of a row are taken apart in one pass, which is quicker than most of them one by one.
  const bool rows_lie = dy[4] == 1 && !images_last;
  std::copy_n(dy, 5, lie);
  beyond = !std::all_of(axis, axis + 3, [](const Reaches& a) { return a.inside(); });
  raw = vectors > 0 && !images_last && axis[2].size >= kLongRow && (!beyond || outputs >= kFewRows);
  if (rows_lie && 2 * i64(phases.size()) > axis[2].stride) {
    phases.clear();
    for (i64 phase = 0; phase < axis[2].stride; ++phase) phases.push_back(phase);
  }
  const double room = double(kSumsBytes / element_bytes), panel = double(kPanelBytes / element_bytes);
  choose_channels(*this, room, panel);
  raw = raw && blocks_at_once <= (rows_lie ? kBlocksOfRows : kBlocksOfPixels);
  choose_boxes(*this, panel);
  spans = span_count(*this);
  cycles = estimate(*this, rows_lie);
  threads = int(std::min(double(threads_), 1 + cycles / (vectors ? kCyclesPerThread : kAlongPerThread)));
  share_out(*this);
}

i64 GradWeight::tile_height(i64 rows) const {
  const int vecs = std::max(int(vectors), 1);
  return element_bytes == 8 ? tile_rows(*isa.f64, rows, kTerms, vecs) : tile_rows(*isa.f32, rows, kTerms, vecs);
}

}  // namespace tconv
