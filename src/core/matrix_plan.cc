// SPDX-License-Identifier: Apache-2.0
// Geometry of matrix.h: boxes, tasks and offsets; and what they are expected to cost.
#include <algorithm>
#include <cmath>
#include <string>

#include "matrix.h"

namespace tconv {
namespace {

constexpr i64 kPanelBytes = 512 << 10;  // with a block of weights it fits a second-level cache
constexpr double kFewPositions = 4 * kTallRows;
constexpr double kLargestPanel = 32 << 20;  // bytes of a box of one position
constexpr i64 kLongestPhases = 64;          // along a row: their sums lie side by side
constexpr double kMostLeads = 4096;         // phases of the other axes

// An axis of one input has no steps: taps are phases then, rather than as many positions that read zeros for all taps but one.
Axis without_steps(Axis a) {
  if (a.size == 1 && a.full() <= kLongestPhases) a.stride = std::max(a.stride, a.full());
  return a;
}

// Vectors of a block of output channels, of which the fewest lanes are idle.
int block_vecs(i64 outputs, i64 lanes) { return outputs <= lanes || (outputs > 2 * lanes && outputs <= 3 * lanes) ? 1 : kGatherVecs; }

}  // namespace

std::string matrix_refusal(const Spec& spec, Direction direction) {
  double bytes = 4.0 * double(round_up(direction == Direction::forward ? spec.in_channels : spec.out_channels, kTileSide * spec.groups)) /
                 double(spec.groups);
  double leads = 1;
  bool cut = false;
  for (int i = 0; i < 3; ++i) {
    const StencilAxis a(without_steps(spec.axis[i]), direction);
    bytes *= double(a.in_phases.size()) * (double(a.halo()) + (cut || a.count == 1 ? double(a.count) : 1.0));
    cut = cut || a.count > 1;
    if (i == 2 && a.out_stride > kLongestPhases) return "strides along the row are larger than 64, whose sums would not fit the caches";
    if (i < 2) leads *= double(a.out_end - a.out_begin);
  }
  if (leads > kMostLeads) return "there are more than 4096 phases of rows";
  return bytes > kLargestPanel ? "the inputs that one row of positions reads are larger than 32 MiB" : "";
}

Matrix::Matrix(const Spec& spec, Direction direction, const Isa& isa, int threads_)
    : batch(spec.batch), groups(spec.groups), threads(threads_) {
  const bool forward = direction == Direction::forward;
  const i64 lanes = isa.f32->lanes;
  channels = (forward ? spec.in_channels : spec.out_channels) / groups;
  outputs = (forward ? spec.out_channels : spec.in_channels) / groups;
  depth = round_up(channels, kTileSide);
  pitch = pixel_pitch(depth);
  vecs = block_vecs(outputs, lanes);
  block = vecs * lanes;
  blocks = ceil_div(outputs, block);
  taps = planes = 1;
  for (int i = 0; i < 3; ++i) {
    axis[i] = StencilAxis(without_steps(spec.axis[i]), direction);
    taps *= axis[i].kernel, planes *= i64(axis[i].in_phases.size());
  }
  make_boxes();
  share_out();
  make_leads();
}

// Boxes whose panel fits a second-level cache: of some images, or of a part of one.
void Matrix::make_boxes() {
  cut = axis[0].count > 1 ? 0 : axis[1].count > 1 ? 1 : 2;
  StencilAxis& a = axis[cut];
  i64 row = planes * pitch * i64(sizeof(float));  // bytes of the panel for a position along the cut
  for (int i = 0; i < 3; ++i)
    if (i != cut) row *= axis[i].count + axis[i].halo();
  const double image = double(row) * double(a.count + a.halo());
  const i64 least = std::min(a.count, std::max<i64>(1, a.halo()));  // or most of a panel is halo
  i64 boxes = image <= double(kPanelBytes) ? 1 : ceil_div(a.count, std::clamp<i64>(kPanelBytes / row - a.halo(), least, a.count));
  images = boxes > 1 ? 1 : std::clamp<i64>(i64(double(kPanelBytes) / std::max(image, 1.0)), 1, std::max<i64>(1, batch));
  if (threads > 1) {  // a few tasks for each, as long as a box has some tiles of positions: it reads all weights
    const double positions = double(axis[0].count) * double(axis[1].count) * double(axis[2].count);
    const i64 wanted = 4 * threads, few = i64(std::min(double(batch), std::ceil(kFewPositions / positions)));
    images = std::min(images, std::max({i64(1), few, ceil_div(batch * groups, wanted)}));
    if (images == 1)
      boxes = std::max(boxes, std::min({ceil_div(wanted, std::max<i64>(1, batch * groups)), i64(std::min(positions / kFewPositions, 1e6)),
                                        a.count / (2 * least)}));
  }
  a.cut(std::clamp<i64>(boxes, 1, a.count));
  plane = images;
  for (int i = 0; i < 3; ++i) extent[i] = (i == cut ? a.box : axis[i].count) + axis[i].halo(), plane *= extent[i];
  on = extent[1] * extent[2] < round_up(rows(extent[1] - axis[1].halo(), extent[2] - axis[2].halo()), kTileSide);
}

void Matrix::share_out() {
  const i64 tasks = std::max<i64>(1, places() * groups);
  blocks_per_run = ceil_div(blocks, std::min(blocks, threads > 1 ? ceil_div(2 * threads, tasks) : 1));
  runs = ceil_div(blocks, blocks_per_run);
}

void Matrix::make_leads() {
  const auto& [d, h, w] = axis;
  const auto plane_of = [](const StencilAxis& a, const Tap& t) {
    return i64(std::lower_bound(a.in_phases.begin(), a.in_phases.end(), t.in_phase) - a.in_phases.begin());
  };
  for (i64 pd = d.out_begin; pd < d.out_end; ++pd)
    for (i64 ph = h.out_begin; ph < h.out_end; ++ph) {
      Lead lead{pd, ph, std::vector<Phase>(std::size_t(w.out_end - w.out_begin))};
      for (const Tap& td : d.taps)
        for (const Tap& th : h.taps)
          for (const Tap& tw : w.taps) {
            if (td.out_phase != pd || th.out_phase != ph) continue;
            const i64 of = (plane_of(d, td) * i64(h.in_phases.size()) + plane_of(h, th)) * i64(w.in_phases.size()) + plane_of(w, tw);
            const i64 at = ((d.shift_max - td.shift) * extent[1] + h.shift_max - th.shift) * extent[2] + w.shift_max - tw.shift;
            Phase& phase = lead.phases[std::size_t(tw.out_phase - w.out_begin)];
            phase.pixels.push_back((of * plane + at) * pitch);
            phase.weights.push_back(((td.tap * h.kernel + th.tap) * w.kernel + tw.tap) * depth * block);
          }
      leads.push_back(std::move(lead));
    }
}

Matrix::Box Matrix::box(i64 place) const {
  const i64 boxes = axis[cut].boxes, image = place / boxes * images;
  Box found{image, std::min(images, batch - image), {}, {axis[0].count, axis[1].count, axis[2].count}};
  found.at[cut] = axis[cut].begin(place % boxes);
  found.size[cut] = axis[cut].begin(place % boxes + 1) - found.at[cut];
  return found;
}

double cycles(const Matrix& m, bool channels_last) {
  // Loads of a tile of two vectors, or of one, and products; and storing and writing sums, a little more of a phase of rows.
  const double tile = m.vecs == 2 ? 90 : 55, written = channels_last ? 0.35 : 0.5, filled = channels_last ? 0.2 : 0.35;
  const double pixels = double(m.places()) * double(m.plane);
  const double maps = double(m.places()) * double(m.images) * double(m.extent[0] - m.axis[0].halo());
  const i64 rows_of_map = m.rows(m.extent[1] - m.axis[1].halo(), m.extent[2] - m.axis[2].halo());
  const double tiles = m.on ? pixels / double(kTallRows) : maps * (double(round_up(rows_of_map, kTileSide)) / double(kTallRows) + 0.1);
  double products = 0, rows = 0, out = double(m.batch) * double(m.outputs);
  for (const Matrix::Lead& lead : m.leads)
    for (const Matrix::Phase& phase : lead.phases) products += tile * double(i64(phase.pixels.size()) * m.depth / kTileSide), rows += 150;
  for (const StencilAxis& a : m.axis) out *= double(a.out_size);
  const double weights = double(m.weight_elements()) >= double(kManyWeights) ? 0.3 * double(m.taps * m.depth * m.blocks * m.block) : 0;
  return double(m.groups) * (tiles * double(m.blocks) * (products + rows) + filled * pixels * double(m.planes * m.depth) +
                             double(m.places()) * weights + written * out);
}

}  // namespace tconv
