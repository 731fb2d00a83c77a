// SPDX-License-Identifier: Apache-2.0
// Geometry of a plan: taps and phases, the rows computed together, and how large a box is.
#include "plan.h"

#include <algorithm>
#include <array>
#include <map>
#include <new>

namespace tconv {
namespace {

// What a box may take of a core's second-level cache: the panel of inputs, and the panel of accumulators.
constexpr i64 kPanelBytes = 512 << 10, kMaxLanes = 1024;
constexpr i64 kUnitRows = 24;  // accumulator rows of a unit: a multiple of every tall tile (12, 8, 6, 4)

// The taps of one output phase of an axis.
std::vector<Tap> taps_of(const StencilAxis& a, i64 phase) {
  const auto begin = std::lower_bound(a.taps.begin(), a.taps.end(), phase, [](const Tap& t, i64 p) { return t.out_phase < p; });
  const auto end = std::find_if(begin, a.taps.end(), [&](const Tap& t) { return t.out_phase != phase; });
  return {begin, end};
}

i64 index_of(const std::vector<i64>& values, i64 value) { return std::lower_bound(values.begin(), values.end(), value) - values.begin(); }

struct PhaseTaps {
  std::vector<i64> offsets, taps;
};

// The taps of one output phase (pd, ph, pw): where each reads in the panel, and which kernel element it is.
PhaseTaps phase_taps(const Plan& plan, i64 pd, i64 ph, i64 pw) {
  const StencilAxis &d = plan.axis[0], &h = plan.axis[1], &w = plan.axis[2];
  PhaseTaps found;
  for (const Tap& td : taps_of(d, pd))
    for (const Tap& th : taps_of(h, ph))
      for (const Tap& tw : taps_of(w, pw)) {
        const i64 plane =
            (index_of(d.in_phases, td.in_phase) * i64(h.in_phases.size()) + index_of(h.in_phases, th.in_phase)) * i64(w.in_phases.size()) +
            index_of(w.in_phases, tw.in_phase);
        const i64 at = ((d.shift_max - td.shift) * h.extent + h.shift_max - th.shift) * w.extent + w.shift_max - tw.shift;
        found.offsets.push_back(plane * plan.plane + at);
        found.taps.push_back((td.tap * h.kernel + th.tap) * w.kernel + tw.tap);
      }
  return found;
}

// Boxes grow from the row outwards while the panel fits: columns, rows, depth, images. `wanted` boxes keep all threads busy.
void choose_box(Plan& plan, i64 panel_elements, i64 wanted) {
  StencilAxis *d = &plan.axis[0], *h = &plan.axis[1], *w = &plan.axis[2];
  const auto halo = [](const StencilAxis* a) { return a->shift_max - a->shift_min; };
  const i64 room = std::max<i64>(64, std::min<i64>(kMaxLanes, panel_elements / (plan.channels * plan.planes)));
  for (StencilAxis* a : {d, h, w}) a->box = 1;
  plan.box_batch = 1;
  w->box = w->count + halo(w) <= room ? w->count : even(w->count, std::max<i64>(64, (room - halo(w)) / 64 * 64));
  i64 row = w->box + halo(w);
  if (w->box == w->count) h->box = even(h->count, std::max<i64>(room / row - halo(h), std::min<i64>(halo(h), h->count)));
  const i64 slab = row * (h->box + halo(h));
  if (h->box == h->count && w->box == w->count) d->box = even(d->count, room / slab - halo(d));
  const i64 volume = slab * (d->box + halo(d));
  if (d->box == d->count && h->box == h->count && w->box == w->count) plan.box_batch = even(std::max<i64>(plan.batch, 1), room / volume);
  const auto boxes = [&] {
    return ceil_div(plan.batch, plan.box_batch) * ceil_div(d->count, d->box) * ceil_div(h->count, h->box) * ceil_div(w->count, w->box);
  };
  if (boxes() * plan.groups * plan.blocks >= wanted) return;  // channel blocks can be shared out as well
  for (i64* size : {&plan.box_batch, &d->box, &h->box})
    while (*size > 1 && boxes() * plan.groups * plan.blocks < wanted) *size = ceil_div(*size, 2);
  while (w->box > 128 && boxes() * plan.groups * plan.blocks < wanted) w->box = ceil_div(w->box, 2);
}

// Rows of whole width have zeros at both ends: those at the end of one serve the next as well. How many may be left out.
i64 shared_zeros(const StencilAxis& w) {
  if (w.box != w.count) return 0;
  i64 shared = std::min(w.shift_max - w.shift_min, w.box - 1);  // more, and taps of two rows would have one offset
  for (i64 phase : w.in_phases) {
    const i64 start = w.in_stride * (w.first - w.shift_max) - w.in_lo + phase;  // input coordinate of the first column
    const i64 before = std::clamp<i64>(ceil_div(-start, w.in_stride), 0, w.extent);
    const i64 after = w.extent - std::clamp<i64>(ceil_div(w.in_size - start, w.in_stride), 0, w.extent);
    shared = std::min({shared, before, std::max<i64>(after, 0)});
  }
  return shared;
}

struct PhaseOf {
  i64 index;  // [lead][phase - begin] of the unit
  PhaseTaps taps;
};

// Rows enough to fill tiles: one group for each list of offsets.
void group_by_list(Unit& unit, const std::vector<PhaseOf>& phases) {
  std::map<std::vector<i64>, std::vector<const PhaseOf*>> lists;
  for (const PhaseOf& p : phases) lists[p.taps.offsets].push_back(&p);
  i64 slot = 0;
  for (const auto& [offsets, members] : lists) {
    RowGroup group{slot, i64(members.size()), offsets, {}, false};
    for (const PhaseOf* p : members) {
      unit.slot[p->index] = slot++;
      group.taps.push_back(p->taps.taps);
    }
    unit.groups.push_back(std::move(group));
  }
}

// Few rows: they are multiplied together wherever they share an offset. Offsets are grouped by the rows that read them, and
// each run of such rows is a group that adds to the others' sums. (k9 s2: the four phases have 5x5, 5x4, 4x5 and 4x4 taps;
// 16 offsets serve all four rows, 4 + 4 two rows, 1 a single one. `phases` come in an order that keeps such rows adjacent.)
void group_by_offset(Unit& unit, const std::vector<PhaseOf>& phases) {
  struct Reader {
    i64 slot, tap;
  };
  std::map<i64, std::vector<Reader>> readers;  // offset -> who reads it
  for (i64 slot = 0; slot < i64(phases.size()); ++slot) {
    const PhaseTaps& taps = phases[slot].taps;
    unit.slot[phases[slot].index] = slot;
    for (std::size_t t = 0; t < taps.offsets.size(); ++t) readers[taps.offsets[t]].push_back({slot, taps.taps[t]});
  }
  std::map<std::pair<i64, i64>, RowGroup> runs;  // (-slots, slot): the longest run first
  const auto run_of = [&](i64 slot, i64 slots) -> RowGroup& {
    RowGroup& group = runs[{-slots, slot}];
    group.slot = slot, group.slots = slots;
    group.taps.resize(std::size_t(slots));
    return group;
  };
  for (const auto& [offset, list] : readers)
    for (std::size_t at = 0, end; at < list.size(); at = end) {
      for (end = at + 1; end < list.size() && list[end].slot == list[end - 1].slot + 1;) ++end;
      RowGroup& group = run_of(list[at].slot, i64(end - at));
      group.offsets.push_back(offset);
      for (std::size_t i = at; i < end; ++i) group.taps[i - at].push_back(list[i].tap);
    }
  run_of(0, i64(phases.size()));  // of all rows, perhaps empty: the first group stores its sums and clears them, the others add
  for (auto& [key, group] : runs) {
    group.add = !unit.groups.empty();
    unit.groups.push_back(std::move(group));
  }
}

// A rank for every phase of an axis: 0 for the longest lists of taps.
i64 tap_rank(const StencilAxis& a, i64 phase) {
  i64 most = 0;
  for (i64 p = 0; p < std::min(a.out_stride, a.kernel); ++p) most = std::max(most, i64(taps_of(a, p).size()));
  return most - i64(taps_of(a, phase).size());
}

void make_unit(Plan& plan, std::vector<Unit::Lead> leads, i64 begin, i64 end, bool few_rows) {
  Unit unit{std::move(leads), begin, end, {}, {}};
  std::vector<PhaseOf> phases;
  const i64 run = end - begin;
  for (i64 l = 0; l < i64(unit.leads.size()); ++l)
    for (i64 p = 0; p < run; ++p) phases.push_back({l * run + p, phase_taps(plan, unit.leads[l].depth, unit.leads[l].row, begin + p)});
  unit.slot.resize(phases.size());
  if (few_rows) {
    // There and back again: rows that differ along one axis only are neighbours.
    const auto key = [&](const PhaseOf& p) {
      const Unit::Lead& lead = unit.leads[p.index / run];
      const i64 d = tap_rank(plan.axis[0], lead.depth), h = tap_rank(plan.axis[1], lead.row),
                w = tap_rank(plan.axis[2], begin + p.index % run);
      return std::array<i64, 3>{-d, d % 2 ? -h : h, (d + h) % 2 ? -w : w};
    };
    std::stable_sort(phases.begin(), phases.end(), [&](const PhaseOf& x, const PhaseOf& y) { return key(x) < key(y); });
    group_by_offset(unit, phases);
  } else {
    group_by_list(unit, phases);
  }
  i64 weights = 0;
  for (RowGroup& group : unit.groups) {
    group.weights_before = weights;
    weights += group.slots * i64(group.offsets.size());
  }
  plan.units.push_back(std::move(unit));
}

// A unit holds all phases of a row of output; where those are fewer rows than a tile has, those of several rows.
void make_units(Plan& plan) {
  const i64 run = std::min(plan.axis[2].out_stride, kPhaseMost), room = kMaxRows / (run * plan.block);
  std::vector<Unit::Lead> leads;
  for (const auto& depths : plan.axis[0].out_phases)
    for (i64 pd = depths.first; pd < depths.second; ++pd)
      for (const auto& rows : plan.axis[1].out_phases)
        for (i64 ph = rows.first; ph < rows.second; ++ph) leads.push_back({pd, ph});
  const i64 step = even(i64(leads.size()), std::max<i64>(1, room));
  for (i64 at = 0; at < i64(leads.size()); at += step)
    for (const auto& columns : plan.axis[2].out_phases)
      for (i64 begin = columns.first; begin < columns.second; begin += run)
        make_unit(plan, {leads.begin() + at, leads.begin() + std::min(i64(leads.size()), at + step)}, begin,
                  std::min(begin + run, columns.second), room >= 1);
}

}  // namespace

StencilAxis::StencilAxis(const Axis& a, Direction direction) {
  const bool forward = direction == Direction::forward;
  kernel = a.kernel;
  in_size = forward ? a.size : a.output();
  out_size = forward ? a.output() : a.size;
  in_stride = forward ? 1 : a.stride;
  out_stride = forward ? a.stride : 1;
  in_lo = forward ? 0 : a.lo;
  out_lo = forward ? a.lo : 0;
  first = floor_div(out_lo, out_stride);
  count = floor_div(out_lo + out_size - 1, out_stride) - first + 1;
  for (i64 t = 0; t < a.kernel; ++t) {
    const i64 at = t * a.dilation, phase = at % a.stride, shift = at / a.stride;
    const Tap tap = forward ? Tap{t, phase, 0, shift} : Tap{t, 0, phase, -shift};
    // A tap that the crop or a wide dilation leaves without work must not widen what a box reads.
    const i64 low = ceil_div(in_lo - tap.in_phase, in_stride) + tap.shift,
              high = floor_div(in_lo + in_size - 1 - tap.in_phase, in_stride) + tap.shift;
    if (std::max(low, first) <= std::min(high, first + count - 1)) taps.push_back(tap);
  }
  std::stable_sort(taps.begin(), taps.end(), [](const Tap& x, const Tap& y) { return x.out_phase < y.out_phase; });
  for (const Tap& t : taps) in_phases.push_back(t.in_phase);
  if (taps.empty()) in_phases.push_back(0);
  std::sort(in_phases.begin(), in_phases.end());
  in_phases.erase(std::unique(in_phases.begin(), in_phases.end()), in_phases.end());
  shift_min = shift_max = taps.empty() ? 0 : taps[0].shift;
  for (const Tap& t : taps) shift_min = std::min(shift_min, t.shift), shift_max = std::max(shift_max, t.shift);
  const i64 lead = out_lo - floor_div(out_lo, out_stride) * out_stride, end = lead + out_size;
  if (out_size >= out_stride)
    out_phases = {{0, out_stride}};
  else if (end <= out_stride)
    out_phases = {{lead, end}};
  else
    out_phases = {{0, end - out_stride}, {lead, out_stride}};
}

Plan::Plan(const Spec& spec, Direction direction, const Isa& isa, int threads_, i64 element_bytes)
    : batch(spec.batch), groups(spec.groups), threads(threads_) {
  const bool is_forward = direction == Direction::forward;
  channels = (is_forward ? spec.in_channels : spec.out_channels) / groups;
  outputs = (is_forward ? spec.out_channels : spec.in_channels) / groups;
  planes = taps = 1;
  for (int i = 0; i < 3; ++i) {
    axis[i] = StencilAxis(spec.axis[i], direction);
    planes *= i64(axis[i].in_phases.size());
    taps *= axis[i].kernel;
  }
  block = even(outputs, kUnitRows / std::min(axis[2].out_stride, kUnitRows));
  blocks = ceil_div(outputs, block);
  choose_box(*this, kPanelBytes / element_bytes, threads > 1 ? 3 * threads : 1);
  for (StencilAxis& a : axis) a.extent = a.box + a.shift_max - a.shift_min;
  const i64 shared = shared_zeros(axis[2]);
  axis[2].extent -= shared;
  // An odd number of lines: planes a power of two apart would compete for the same sets of the first-level cache.
  plane = round_up(box_batch * axis[0].extent * axis[1].extent * axis[2].extent + shared, 16) | 16;
  panel = channels * planes * plane + kSlack;
  double exact = double(channels) * double(planes) * double(box_batch);  // extents are each within 62 bits, their product may not be
  for (const StencilAxis& a : axis) exact *= double(a.extent);
  if (exact > 1e17) throw std::bad_alloc();
  make_units(*this);
  const auto height = [&](i64 rows, i64 depth) {
    return element_bytes == 8 ? tile_rows(*isa.f64, rows, depth) : tile_rows(*isa.f32, rows, depth);
  };
  for (Unit& unit : units)
    for (RowGroup& g : unit.groups) {
      const i64 depth = channels * i64(g.offsets.size());
      g.height = height(g.slots * block, depth), g.last_height = height(g.slots * block_outputs(blocks - 1), depth);
    }
}

Boxes::Boxes(const Plan& p) : batches(ceil_div(p.batch, p.box_batch)) {
  for (int i = 0; i < 3; ++i) along[i] = ceil_div(p.axis[i].count, p.axis[i].box);
}

Box Boxes::operator()(const Plan& p, i64 index) const {
  Box b;
  for (int i = 2; i >= 0; --i) {
    const i64 turn = index % along[i], count = p.axis[i].count;  // pieces that differ by one at most: threads end together
    b.at[i] = turn * count / along[i];
    b.size[i] = (turn + 1) * count / along[i] - b.at[i];
    index /= along[i];
  }
  b.batch = index * p.box_batch;
  b.batches = std::min(p.box_batch, p.batch - b.batch);
  return b;
}

template <class T>
int tile_rows(const Kernels<T>& kernels, i64 rows, i64 depth, int vecs) {
  int best = 1;
  double lowest = 1e300;
  for (int r = int(std::min<i64>(kMaxRows, rows)); r >= 1; --r) {
    int v = vecs;
    while (v && !kernels.tile[r][v]) --v;
    if (v < std::min(vecs, 2)) continue;
    // Cycles of a tile of h rows: a tap takes two multiply-adds, or two loads (lanes may straddle lines), or four cycles of
    // latency, whichever is most; then the fixed cost. Counted per vector of lanes.
    const auto cycles = [&](i64 h) {
      return h ? (std::max({h * v / 2.0, (h + 2.0 * v) / 2.0, 4.0}) * double(depth) + 1.5 * double(h) * v + 15.0) / v : 0.0;
    };
    const double cost = double(rows / r) * cycles(r) + cycles(rows % r);
    if (cost < lowest * 0.999) lowest = cost, best = r;
  }
  return best;
}

template int tile_rows<float>(const Kernels<float>&, i64, i64, int);
template int tile_rows<double>(const Kernels<double>&, i64, i64, int);

}  // namespace tconv
