// SPDX-License-Identifier: Apache-2.0
// Geometry of a plan: taps and phases, the rows computed together, and how large a box is.
#include "plan.h"

#include <algorithm>
#include <map>
#include <new>
#include <set>

#include "parallel.h"

namespace tconv {
namespace {

// What a box's panel of inputs may take of a core's second-level cache; with larger boxes the tiles wait for it.
constexpr i64 kPanelBytes = 512 << 10, kMaxLanes = 2048;
constexpr i64 kFewRows = 4;    // of a box
constexpr i64 kLongRow = 512;  // positions: of so many, those at both ends that lack outputs do not matter
// Sums of a strip: near the first-level cache. Every strip reads the weights of its unit anew: many weights want wide strips.
constexpr i64 kSumsBytes = 32 << 10, kManySumsBytes = 192 << 10, kWeightBytes = 256 << 10;
// Of the estimates: an element of a panel, a row of it that is taken apart, a vector of the output, a row of it and its third and fourth
// phase, a vector that is transposed and a row of such, what tiles take beyond their model; a vector of sums that might go straight to the
// output and does not, one that may, and what more than two phases add to those that do not; a vector and a row that go past the caches
// where rows are no whole lines; a box of a group.
constexpr double kPackCycles = 0.4, kLineCycles = 40, kWriteCycles = 6, kRowCycles = 15, kPhaseCycles = 30, kTurnCycles = 7,
                 kTurnedRowCycles = 50, kTileFactor = 1.1, kThroughCycles = 8, kWovenCycles = 2, kPhasesCycles = 7, kTornCycles = 9,
                 kTornRowCycles = 80, kBoxCycles = 400;
constexpr double kReadCycles = 0.2;
constexpr double kQuickWriting = 1.45;  // where caches keep pace, products leave less time beside them
// Of points: a channel of a box, a row of tiles of a channel, one narrower than a vector, a position of a tile that is taken out of a row,
// and a vector of sums.
constexpr double kChannelCycles = 60, kTileRowCycles = 10, kNarrowCycles = 200, kApartCycles = 0.3, kPointSumsCycles = 10;
constexpr i64 kFoldTerms = 64;                         // of a sum, at least, where rows of outputs are folded
constexpr i64 kUnitRows = 32, kBlock = 24, kEven = 8;  // rows of a unit and channels of a block, about; kEven divides the good tiles
constexpr i64 kPixelBlock = 32;                        // channels of a block at most, where they are adjacent

// Rows of whole width have zeros at both ends: those at the end of one serve the next as well. How many may be left out.
i64 shared_zeros(const StencilAxis& w) {
  if (w.box != w.count) return 0;
  const i64 extent = w.box + w.halo();
  i64 shared = std::min(w.halo(), w.box - 1);  // more, and taps of two rows would have one offset
  for (i64 phase : w.in_phases) {
    const i64 start = phase - w.in_stride * w.shift_max - w.in_lo;  // input coordinate of the first column
    const i64 before = std::clamp<i64>(ceil_div(-start, w.in_stride), 0, extent);
    const i64 after = extent - std::clamp<i64>(ceil_div(w.in_size - start, w.in_stride), 0, extent);
    shared = std::min({shared, before, std::max<i64>(after, 0)});
  }
  return shared;
}

// The tile that most of a plan's work is done by, the terms of its sums, and what it makes of a run of lanes: cycles a term.
struct Tiling {
  i64 height, wide, lanes, element_bytes;
  double terms;
  bool woven;
  double multiply;  // cycles of two vectors of multiply-adds

  double cycles(i64 positions) const {
    const i64 vectors = ceil_div(positions, lanes), rest = vectors % wide;
    return double(vectors / wide) * cycles_of(wide) + (rest ? cycles_of(rest) : 0.0);
  }

 private:
  double cycles_of(i64 v) const {
    return tap_cycles(double(height), double(v), double(lanes * element_bytes), multiply) + kTileCycles / terms;
  }
};

// Where strips break: vectors that run on waste the lanes between rows (or slabs), those that stop waste lanes at the end. Rows of their
// own are stored in whole lines, which is worth a little.
struct Broken {
  Break at;
  double cycles;

  Broken(const Tiling& t, i64 row, i64 slab, i64 pitch, i64 rows, i64 slabs) {
    const double on = t.cycles((slabs - 1) * slab + (rows - 1) * pitch + row);
    const double by_slab = double(slabs) * t.cycles((rows - 1) * pitch + row), by_row = double(slabs * rows) * t.cycles(row);
    at = Break::never, cycles = on;
    if (by_slab <= cycles) at = Break::slabs, cycles = by_slab;
    const double through = t.woven ? kThroughCycles / t.terms * double(t.height * rows * slabs * ceil_div(row, t.lanes)) : 0.0;
    cycles += through;
    if (const double whole = by_row + (row < t.lanes ? through : 0.0); whole <= 1.02 * cycles) at = Break::rows, cycles = whole;
  }
};

// What points take beside their panel and products in a box of `slabs` times `h` rows of tiles: calls for each channel and row, which are
// slow where a row fills no vector, rows that are taken apart into the positions of tiles, and sums that become rows of outputs.
double point_cycles(const Plan& p, const Tiling& t, i64 row, i64 h, i64 slabs) {
  if (!p.rows.tile) return 0;
  const i64 other = p.rows.along(2) ? 1 : 2;
  const double phases = double((p.axis[0].out_end - p.axis[0].out_begin) * (p.axis[other].out_end - p.axis[other].out_begin) * p.rows.outs);
  const double lines = double(slabs * h * p.planes / p.rows.points());
  const double apart = p.rows.along(2) ? kLineCycles + kApartCycles * double(row * p.rows.points()) : 0.0;
  return double(p.channels) * (kChannelCycles + lines * ((row < t.lanes ? kNarrowCycles : kTileRowCycles) + apart)) +
         kPointSumsCycles * double(p.outputs) * phases * double(slabs * ceil_div(h * row, t.lanes));
}

// Estimated cycles of a box of so many positions an axis and images: its tiles, and its packing.
double box_cycles(const Plan& p, const Tiling& t, i64 w, i64 h, i64 d, i64 n) {
  const i64 pitch = w + p.axis[2].halo() - shared_zeros(p.axis[2]), slab = pitch * (h + p.axis[1].halo());
  const double tiles = double(p.channels * p.outputs) * p.products / double(t.height);
  const double packed = double(p.channels * p.planes) * double(slab) * double((d + p.axis[0].halo()) * n);
  return kTileFactor * Broken(t, w, slab, pitch, h, d * n).cycles * tiles + kPackCycles * packed + point_cycles(p, t, pitch, h, d * n);
}

// The pieces of `count`, at most `most` each, whose total cost is lowest.
template <class F>
i64 cheapest(i64 count, i64 most, F cost) {
  i64 best = even(count, most);
  double lowest = 1e300;
  for (i64 pieces = ceil_div(count, std::max<i64>(most, 1)), last = std::min(count, 4 * pieces + 4); pieces <= last; ++pieces) {
    const i64 small = count / pieces, large = count % pieces;  // pieces of small + 1
    const double total = double(pieces - large) * cost(small) + (large ? double(large) * cost(small + 1) : 0.0);
    if (total < 0.995 * lowest) lowest = total, best = ceil_div(count, pieces);
  }
  return best;
}

// Few tasks are made a multiple of the threads: an axis that is cut, or else one of several rows, is cut into some more boxes.
void even_out(Plan& plan, i64 tasks) {
  if (tasks % plan.threads == 0 || tasks > kFewTasks * plan.threads) return;
  for (bool cut : {true, false})
    for (i64 more = 1; more < plan.threads; ++more)
      for (int i = 0; i < 3; ++i) {
        StencilAxis& a = plan.axis[i];
        const i64 boxes = a.boxes + more, most = i < 2 ? a.count / kFewRows : cut ? a.count / a.unit : 0;
        if ((a.boxes > 1) == cut && boxes <= most && tasks / a.boxes * boxes % plan.threads == 0) return a.cut(boxes);
      }
}

// Boxes grow from the row outwards while the panel fits: columns, rows, depth, images. `wanted` boxes keep all threads busy.
void choose_box(Plan& plan, const Tiling& t, i64 panel_elements, i64 wanted) {
  StencilAxis *d = &plan.axis[0], *h = &plan.axis[1], *w = &plan.axis[2];
  const i64 room = std::max<i64>(64, std::min<i64>(kMaxLanes, panel_elements / (plan.channels * plan.planes))), tile = t.wide * t.lanes;
  for (StencilAxis* a : {d, h, w}) a->box = 1;
  plan.box_batch = 1;
  const bool whole = w->count + w->halo() <= room;
  w->box = whole ? w->count : round_up(even(w->count, std::max<i64>(64, room - w->halo()) / tile * tile), tile);
  const i64 row = w->box + w->halo();
  const auto cost = [&](i64 rows, i64 depth, i64 images) { return box_cycles(plan, t, w->box, rows, depth, images); };
  // Whole rows: as many as the room holds, or fewer of them and of more slabs, which share their halo.
  double lowest = 1e300;
  for (i64 most = std::min(h->count, std::max<i64>({1, room / row - h->halo(), h->halo()})), rows; whole && most >= 1; most = rows - 1) {
    const i64 pieces = ceil_div(h->count, most);
    rows = ceil_div(h->count, pieces);
    const i64 deep = std::max<i64>(1, room / (row * (rows + h->halo())) - d->halo());
    const i64 depth = cheapest(d->count, deep, [&](i64 slabs) { return cost(rows, slabs, 1); });
    const double total = double(pieces) * double(ceil_div(d->count, depth)) * cost(rows, depth, 1);
    if (total < 0.995 * lowest) lowest = total, h->box = rows, d->box = depth;
  }
  const i64 volume = row * (h->box + h->halo()) * (d->box + d->halo());
  if (whole && h->box == h->count && d->box == d->count)
    plan.box_batch = cheapest(std::max<i64>(plan.batch, 1), room / volume, [&](i64 images) { return cost(h->box, d->box, images); });
  const auto boxes = [&] {
    return ceil_div(plan.batch, plan.box_batch) * ceil_div(d->count, d->box) * ceil_div(h->count, h->box) * ceil_div(w->count, w->box);
  };
  const i64 others = plan.groups * plan.blocks;  // channel blocks can be shared out as well
  for (i64* size : {&plan.box_batch, &d->box, &h->box})
    while (*size > 1 && boxes() * others < wanted) *size = ceil_div(*size, 2);
  while (w->box > 128 && boxes() * others < wanted) w->box = round_up(ceil_div(w->box, 2), tile);
  w->unit = w->box < w->count ? tile : 1;
  for (StencilAxis* a : {d, h, w}) a->cut(std::max<i64>(1, ceil_div(a->count, a->box)));
  even_out(plan, boxes() * others);
}

// Channels computed together: all phases of a row of them are about as many rows as a unit may have. Of few channels, so many that the last
// block is about as large as the others, as threads share them out. Those of a pixel are written together.
i64 choose_block(i64 outputs, i64 run, bool pixels) {
  if (pixels) return even(outputs, kPixelBlock);
  const i64 most = std::clamp<i64>(kUnitRows / run, 1, kBlock);
  if (outputs <= most) return outputs;
  if (most >= kEven) return std::min(most, round_up(even(outputs, most), kEven));
  i64 best = most;
  for (i64 b = most; b >= std::min(even(outputs, most), ceil_div(2 * most, 3)); --b)
    if (round_up(outputs, b) < round_up(outputs, best)) best = b;
  return best;
}

// Whether all phases of an axis are computed and read the same inputs.
bool uniform(const StencilAxis& a) {
  const std::vector<Tap> first = a.of_phase(0);
  for (i64 phase = 1; phase < a.out_stride; ++phase) {
    const std::vector<Tap> other = a.of_phase(phase);
    if (!std::equal(first.begin(), first.end(), other.begin(), other.end(),
                    [](const Tap& x, const Tap& y) { return x.in_phase == y.in_phase && x.shift == y.shift; }))
      return false;
  }
  return a.out_begin == 0 && a.out_end == a.out_stride;
}

// The most phases of an axis, of `run` of them, that read the same inputs.
i64 alike(const StencilAxis& a, i64 run) {
  std::map<std::vector<std::pair<i64, i64>>, i64> readers;
  i64 most = 1;
  for (i64 phase = a.out_begin; phase < a.out_begin + run; ++phase) {
    std::vector<std::pair<i64, i64>> reads;
    for (const Tap& t : a.of_phase(phase)) reads.emplace_back(t.in_phase, t.shift);
    most = std::max(most, ++readers[std::move(reads)]);
  }
  return most;
}

// Whether a tile may hold all of so many phases, two vectors wide.
bool tile_holds(const Isa& isa, i64 phases) { return weaves(phases) && isa.f32->tile[phases][2]; }

// Whether all phases of a row of output are rows of one tile, even where few rows are multiplied by the offsets they share.
bool weaves_rows(const Plan& p, const Isa& isa) {
  const StencilAxis &d = p.axis[0], &h = p.axis[1], &w = p.axis[2];
  return tile_holds(isa, w.out_stride) && uniform(w) && (p.block * w.out_stride > kMaxRows || (uniform(h) && uniform(d)));
}

// Whether most rows of positions go there when a plan runs: they have all of their outputs, as none are cropped or rows are pieces of long
// ones, and what goes past the caches is whole lines.
bool weaves_most(const Plan& p, i64 lanes, i64 element_bytes) {
  const StencilAxis& w = p.axis[2];
  if (p.large && (w.out_size * element_bytes % kLine || w.count % lanes)) return false;
  return w.count > kLongRow || (w.out_lo == 0 && w.out_size == w.count * w.out_stride);
}

// Axes of a stencil whose few outputs would not fill a tile: phases share what they read, and rows of outputs are computed together.
void fill_tiles(Plan& p, const Spec& spec, const Isa& isa, Direction direction) {
  i64 rows = p.outputs;
  for (const StencilAxis& a : p.axis) rows *= std::min(a.out_end - a.out_begin, kPhaseMost);
  if (p.outputs * std::min(p.axis[2].out_end - p.axis[2].out_begin, kPhaseMost) > kMaxRows) {
    // Long rows whose phases could read the same inputs are put together in registers.
    const StencilAxis shared(spec.axis[2], direction, true);
    if (shared.count > kLongRow && tile_holds(isa, shared.out_stride) && uniform(shared)) p.axis[2] = shared;
    return;
  }
  // Sums of few terms are not worth the reading and writing between groups that folding makes.
  const i64 fold = p.channels * p.taps < kFoldTerms * rows / p.outputs ? 1 : std::clamp<i64>(kMaxRows / rows, 1, p.axis[1].count);
  for (int i = 0; i < 3; ++i) p.axis[i] = StencilAxis(spec.axis[i], direction, true, i == 1 ? fold : 1);
}

// Whether one group reads every tap, in order, for every output.
bool takes_all_in_order(const Plan& p) {
  if (p.units.size() != 1 || p.units[0].groups.size() != 1 || p.units[0].slot.size() != 1) return false;
  const std::vector<i64>& taps = p.units[0].groups[0].taps[0];
  for (std::size_t i = 0; i < taps.size(); ++i)
    if (taps[i] != i64(i)) return false;
  return i64(taps.size()) == p.taps;
}

// Strips: as many vectors as keep the sums near, in whole tiles.
void choose_strips(Plan& p, const Tiling& t, i64 element_bytes) {
  i64 unit_rows = 1;
  for (const Unit& u : p.units) unit_rows = std::max(unit_rows, i64(u.slot.size()) * p.block);
  // Every strip reads the unit's weights anew.
  const bool heavy = p.channels * p.weights / i64(p.units.size()) * p.block * element_bytes > kWeightBytes;
  p.wide = t.wide;
  p.strip =
      std::max<i64>(1, (heavy || p.rows.tile ? kManySumsBytes : kSumsBytes) / element_bytes / (unit_rows * t.lanes * t.wide)) * t.wide;
  if (p.breaks == Break::rows) p.strip = std::min(p.strip, round_up(ceil_div(p.axis[2].box, t.lanes), t.wide));
  p.pitch = round_up(p.strip * t.lanes, 16) | 16;  // an odd number of lines
}

template <class T>
void place_rows(const Plan& p, const Kernels<T>& k, const RowGroup& g, i64 outputs, RowGroup::Rows& rows) {
  for (i64 i = 0; i < i64(g.slots.size()) * outputs; ++i) {
    const auto [slot, m] = g.row(i, outputs, p.woven);
    rows.sums.push_back((g.slots[std::size_t(slot)] * p.block + m) * p.pitch);
  }
  rows.height = tile_rows(k, i64(rows.sums.size()), p.channels * i64(g.offsets.size()), kMaxVecs, p.woven ? p.axis[2].out_stride : 1);
}

template <class T>
Tiling main_tile(const Plan& p, const Kernels<T>& k, double multiply) {
  const i64 run = p.run(), points = p.rows.points(), all_leads = p.axis[1].out_end - p.axis[1].out_begin;
  const i64 leads = p.rows.along(2) ? 1 : all_leads / points;
  const i64 rows = p.block * (p.block * run > kMaxRows ? alike(p.axis[2], run) : run * leads);
  const i64 multiple = p.woven ? run : 1;
  const int height = tile_rows(k, std::min<i64>(rows, kBlock) / multiple * multiple, kTerms, kMaxVecs, multiple);
  const i64 phases = (p.axis[0].out_end - p.axis[0].out_begin) * all_leads * run * (p.rows.along(2) ? points : 1);
  return {height,  tile_vecs(k, height), k.lanes, sizeof(T), std::max(1.0, double(p.channels) * p.products / double(phases)), p.woven,
          multiply};
}

template <class T>
void finish_plan(Plan& p, const Kernels<T>& k) {
  for (Unit& unit : p.units)
    for (RowGroup& g : unit.groups) {
      place_rows(p, k, g, p.block, g.rows), place_rows(p, k, g, p.block_outputs(p.blocks - 1), g.last_rows);
      unit.tiles += ceil_div(i64(g.rows.sums.size()), g.rows.height);
    }
}

}  // namespace

std::vector<Tap> StencilAxis::of_phase(i64 phase) const {
  const auto begin = std::lower_bound(taps.begin(), taps.end(), phase, [](const Tap& t, i64 p) { return t.out_phase < p; });
  const auto end = std::find_if(begin, taps.end(), [&](const Tap& t) { return t.out_phase != phase; });
  return {begin, end};
}

StencilAxis::StencilAxis(const Axis& a, Direction direction, bool shared, i64 fold) {
  const bool forward = direction == Direction::forward;
  const i64 in_step = forward ? 1 : a.stride, out_step = forward ? a.stride : 1;
  kernel = a.kernel;
  in_size = forward ? a.size : a.output();
  out_size = forward ? a.output() : a.size;
  in_stride = fold * in_step;
  out_stride = fold * out_step;
  in_lo = forward ? 0 : a.lo;
  out_lo = forward && shared ? floor_mod(a.lo, a.stride) : 0;
  count = ceil_div(out_lo + out_size, out_stride);
  out_begin = out_lo + out_size > out_stride ? 0 : out_lo;
  out_end = std::min(out_stride, out_lo + out_size);
  std::set<std::pair<i64, i64>> read_at;  // (phase, shift) that join some input to some output
  for (i64 t = 0; t < a.kernel; ++t) {
    // The first output and input of the tap: forward it reaches t * dilation - lo from input 0, backward input t * dilation from output 0.
    const i64 reach = t * a.dilation - (forward ? a.lo - out_lo : 0), step = forward ? out_step : in_step;
    const i64 phase = floor_mod(reach, step), shift = floor_div(reach, step);
    for (i64 f = 0; f < fold; ++f) {
      const i64 read = forward ? f - shift : (f + shift) * in_step + phase;  // input coordinate for position 0, before in_lo
      const Tap tap{t, f * out_step + (forward ? phase : 0), floor_mod(read, in_stride), -floor_div(read, in_stride)};
      taps.push_back(tap);
      const i64 low = std::max(ceil_div(in_lo - tap.in_phase, in_stride) + tap.shift, ceil_div(out_lo - tap.out_phase, out_stride));
      const i64 high = std::min(floor_div(in_lo + in_size - 1 - tap.in_phase, in_stride) + tap.shift,
                                floor_div(out_lo + out_size - 1 - tap.out_phase, out_stride));
      if (low <= high) read_at.insert({tap.in_phase, tap.shift});
    }
  }
  // What the crop or a wide dilation leaves without work must not widen what a box reads. It goes for all phases together, so that the
  // order of a sum does not depend on the size of the input.
  taps.erase(std::remove_if(
                 taps.begin(), taps.end(),
                 [&](const Tap& t) { return t.out_phase < out_begin || t.out_phase >= out_end || !read_at.count({t.in_phase, t.shift}); }),
             taps.end());
  std::stable_sort(taps.begin(), taps.end(), [](const Tap& x, const Tap& y) { return x.out_phase < y.out_phase; });
  for (const Tap& t : taps) in_phases.push_back(t.in_phase);
  if (taps.empty()) in_phases.push_back(0);
  std::sort(in_phases.begin(), in_phases.end());
  in_phases.erase(std::unique(in_phases.begin(), in_phases.end()), in_phases.end());
  shift_min = shift_max = taps.empty() ? 0 : taps[0].shift;
  for (const Tap& t : taps) shift_min = std::min(shift_min, t.shift), shift_max = std::max(shift_max, t.shift);
}

Plan::Plan(const Spec& spec, Direction direction, const Isa& isa, int threads_, i64 element_bytes, bool rows_lie, bool by_points)
    : batch(spec.batch), groups(spec.groups), threads(threads_) {
  const bool is_forward = direction == Direction::forward;
  channels = (is_forward ? spec.in_channels : spec.out_channels) / groups;
  outputs = (is_forward ? spec.out_channels : spec.in_channels) / groups;
  for (int i = 0; i < 3; ++i) axis[i] = StencilAxis(spec.axis[i], direction);
  if (by_points) {
    rows = RowPoints(spec, is_forward);
    rows.at_once = rows_lie ? 1 : std::min<i64>(channels, element_bytes == 8 ? isa.f64->lanes : isa.f32->lanes);
    axis[rows.axis] = StencilAxis(spec.axis[rows.axis], rows);
    rows.few = outputs * run() <= kMaxRows;
    if (rows.few)
      for (int i : {0, 3 - rows.axis}) axis[i] = StencilAxis(spec.axis[i], direction, true);
  }
  planes = taps = 1;
  for (const StencilAxis& a : axis) taps *= a.kernel;
  if (!by_points) fill_tiles(*this, spec, isa, direction);
  products = 1;
  for (const StencilAxis& a : axis) products *= double(a.taps.size());
  if (StencilAxis& w = axis[2];
      rows_lie && !rows.along(2) && 2 * i64(w.in_phases.size()) > w.in_stride) {  // all of a row's are taken apart in one pass
    w.in_phases.clear();
    for (i64 phase = 0; phase < w.in_stride; ++phase) w.in_phases.push_back(phase);
  }
  for (const StencilAxis& a : axis) planes *= i64(a.in_phases.size());
  block = choose_block(outputs, run(), !rows_lie);
  blocks = ceil_div(outputs, block);
  const double bytes = output_bytes(axis, batch * groups * outputs, element_bytes);
  large = bytes >= double(kStreamBytes), far = bytes >= double(kFarBytes);
  woven = !by_points && weaves_rows(*this, isa);
  Tiling tiling = element_bytes == 8 ? main_tile(*this, *isa.f64, isa.multiply) : main_tile(*this, *isa.f32, isa.multiply);
  tiling.woven &= rows_lie && weaves_most(*this, tiling.lanes, element_bytes);
  choose_box(*this, tiling, kPanelBytes / element_bytes, threads > 1 ? 3 * threads : 1);
  for (StencilAxis& a : axis) a.extent = a.box + a.shift_max - a.shift_min;
  const i64 shared = shared_zeros(axis[2]);
  axis[2].extent -= shared;
  breaks = Broken(tiling, axis[2].box, axis[1].extent * axis[2].extent, axis[2].extent, axis[1].box, axis[0].box * box_batch).at;
  if (breaks == Break::rows) axis[2].extent = round_up(axis[2].extent, tiling.lanes);  // which begin with a whole vector
  // An odd number of lines: planes a power of two apart would compete for the same sets of the first-level cache.
  plane = round_up(box_batch * axis[0].extent * axis[1].extent * axis[2].extent + shared, 16) | 16;
  panel = channels * planes * plane + kSlack;
  double exact = double(channels) * double(planes) * double(box_batch);  // extents are each within 62 bits, their product may not be
  for (const StencilAxis& a : axis) exact *= double(a.extent);
  if (exact > 1e17) throw std::bad_alloc();
  make_units();
  natural = takes_all_in_order(*this);
  choose_strips(*this, tiling, element_bytes);
  lanes = tiling.lanes;
  box_cycles = tconv::box_cycles(*this, tiling, axis[2].box, axis[1].box, axis[0].box, box_batch);
  const double lines =
      axis[2].in_phases.size() > 1 ? double(box_batch * axis[0].extent * axis[1].extent * planes) / double(axis[2].in_phases.size()) : 0.0;
  pack_cycles = double(channels) * (kPackCycles * double(planes * plane) + kLineCycles * lines);
  write_cycles = tiling.woven ? kWovenCycles : kWriteCycles;  // beside what Broken counts
  if (axis[2].out_stride > 2 && !(tiling.woven && breaks == Break::rows)) write_cycles += kPhasesCycles;
  if (isa.quick_caches) write_cycles *= kQuickWriting;
  element_bytes == 8 ? finish_plan(*this, *isa.f64) : finish_plan(*this, *isa.f32);
  once = blocks == 1 && units.size() == 1 && units[0].tiles == 1 && planes == 1 &&
         std::all_of(axis, axis + 3, [](const StencilAxis& a) { return a.halo() == 0; });
  share_out(*this);
}

double cycles(const Plan& p, bool channels_last) {
  const StencilAxis &d = p.axis[0], &h = p.axis[1], &w = p.axis[2];
  const double boxes = double(p.batch) / double(p.box_batch) * double(d.count) / double(d.box) * double(h.count) / double(h.box) *
                       double(w.count) / double(w.box);
  const double rows = double(p.batch * p.outputs) * double(d.out_size) * double(h.out_size);
  const double written = rows * double(w.out_size) / double(p.lanes);
  const double each_row =
      channels_last ? kTurnedRowCycles : kRowCycles + kPhaseCycles * double(std::clamp<i64>(std::min(w.out_stride, w.out_size) - 2, 0, 2));
  const double torn = p.large && !channels_last && w.out_size % 16 ? kTornCycles * written + kTornRowCycles * rows : 0.0;
  // Adjacent channels are transposed in registers on both ways.
  const double packed = double(p.batch * p.channels) * double(d.in_size) * double(h.in_size) * double(w.in_size);
  // Phases along a row that are taken apart, by calls of their own; more than a few of them by way of squares.
  const i64 phases = i64(w.in_phases.size());
  const double lines = double(p.batch * p.channels) * double(d.in_size) * double(h.in_size) * double(phases > 1 ? phases : 0);
  const double split = channels_last ? 0.0 : (phases > 4 ? 20.0 : 4.0) * lines;
  // Of adjacent channels, a phase's columns lie that many pixels apart.
  const double apart = phases > 4 ? 0.06 * double(phases) : 0.0;
  const double turned = channels_last ? kTurnCycles * (packed / double(p.lanes) + written) + apart * packed : 0.0;
  // Weights that come from memory, an element at a time.
  const double weights = p.weight_elements() >= kManyWeights ? kReadCycles * double(p.channels * p.outputs * p.weights) : 0.0;
  return double(p.groups) *
         (boxes * (p.box_cycles + kBoxCycles + weights) + p.write_cycles * written + each_row * rows + torn + split + turned);
}

}  // namespace tconv
