// SPDX-License-Identifier: Apache-2.0
// The rows of a plan that are computed together, and the offsets at which they read.
#include <algorithm>
#include <map>
#include <utility>

#include "plan.h"

namespace tconv {
namespace {

constexpr i64 kLightTerms = 64, kLightRows = 64;  // of sums that are short beside their writing: rows of a unit

i64 index_of(const std::vector<i64>& values, i64 value) { return std::lower_bound(values.begin(), values.end(), value) - values.begin(); }

struct PhaseTaps {
  std::vector<i64> offsets, taps;
};

// The taps of one output phase (pd, ph, pw): where each reads in the panel, and which kernel element it is.
PhaseTaps phase_taps(const Plan& plan, i64 pd, i64 ph, i64 pw) {
  const StencilAxis &d = plan.axis[0], &h = plan.axis[1], &w = plan.axis[2];
  PhaseTaps found;
  for (const Tap& td : d.of_phase(pd))
    for (const Tap& th : h.of_phase(ph))
      for (const Tap& tw : w.of_phase(pw)) {
        const i64 plane =
            (index_of(d.in_phases, td.in_phase) * i64(h.in_phases.size()) + index_of(h.in_phases, th.in_phase)) * i64(w.in_phases.size()) +
            index_of(w.in_phases, tw.in_phase);
        const i64 at = ((d.shift_max - td.shift) * h.extent + h.shift_max - th.shift) * w.extent + w.shift_max - tw.shift;
        found.offsets.push_back(plane * plan.plane + at);
        found.taps.push_back((td.tap * h.kernel + th.tap) * w.kernel + tw.tap);
      }
  return found;
}

struct PhaseOf {
  i64 index;  // [lead][phase - begin] of the unit
  PhaseTaps taps;
};

// Rows enough to fill tiles: one group for each list of offsets.
void group_by_list(Unit& unit, const std::vector<PhaseOf>& phases) {
  std::map<std::vector<i64>, RowGroup> lists;
  for (const PhaseOf& p : phases) {
    RowGroup& group = lists[p.taps.offsets];
    group.offsets = p.taps.offsets;
    group.slots.push_back(unit.slot[p.index]);
    group.taps.push_back(p.taps.taps);
  }
  for (auto& [offsets, group] : lists) unit.groups.push_back(std::move(group));
}

// Few rows: they are multiplied together wherever they share an offset. The offsets that the same rows read are a group, which adds to
// the others' sums. (k9 s2: the four phases have 5x5, 5x4, 4x5 and 4x4 taps; 16 offsets serve all four, 4 + 4 two of them, 1 one.)
void group_by_offset(Unit& unit, const std::vector<PhaseOf>& phases) {
  std::map<i64, std::vector<std::pair<i64, i64>>> readers;  // offset -> (slot, tap) of who reads it
  RowGroup all;                                             // the first group stores its sums and clears them, the others add
  for (const PhaseOf& p : phases) {
    all.slots.push_back(unit.slot[p.index]);
    for (std::size_t t = 0; t < p.taps.offsets.size(); ++t) readers[p.taps.offsets[t]].push_back({unit.slot[p.index], p.taps.taps[t]});
  }
  all.taps.resize(all.slots.size());
  std::map<std::vector<i64>, RowGroup> sets;  // by the slots that read
  sets[all.slots] = all;
  for (const auto& [offset, list] : readers) {
    std::vector<i64> slots;
    for (const auto& [slot, tap] : list) slots.push_back(slot);
    RowGroup& group = sets[slots];
    group.slots = std::move(slots);
    group.offsets.push_back(offset);
    group.taps.resize(list.size());
    for (std::size_t i = 0; i < list.size(); ++i) group.taps[i].push_back(list[i].second);
  }
  unit.groups.push_back(std::move(sets[all.slots]));
  sets.erase(all.slots);
  for (auto& [slots, group] : sets) {
    group.add = true;
    unit.groups.push_back(std::move(group));
  }
}

// Phases of the other axes, with those along the row from `begin` on. By points (row_points.h), what is written are all positions of a
// tile, and what is computed all of its points.
void make_unit(Plan& plan, const std::vector<Unit::Lead>& leads, i64 begin, i64 end, bool few_rows) {
  const RowPoints& rows = plan.rows;
  Unit unit{{}, begin, rows.along(2) ? rows.tile * rows.outs : end, {}, {}, 0};
  for (i64 j = 0; j < (rows.along(1) ? rows.tile : 1); ++j)
    for (const Unit::Lead& lead : leads) unit.leads.push_back({lead.depth, j * rows.outs + lead.row});
  for (i64 point = 0; point < rows.points(); ++point) {
    std::vector<PhaseOf> phases;
    const i64 before = point * rows.outs;
    const auto taps_of = [&](const Unit::Lead& lead, i64 p) {
      return rows.along(2) ? phase_taps(plan, lead.depth, lead.row, before + p) : phase_taps(plan, lead.depth, before + lead.row, p);
    };
    for (const Unit::Lead& lead : leads)
      for (i64 p = begin; p < end; ++p) {
        phases.push_back({i64(unit.slot.size()), taps_of(lead, p)});
        unit.slot.push_back(i64(unit.slot.size()));
      }
    few_rows ? group_by_offset(unit, phases) : group_by_list(unit, phases);
  }
  for (RowGroup& group : unit.groups) {
    group.weights_before = plan.weights;
    plan.weights += i64(group.slots.size() * group.offsets.size());
  }
  plan.units.push_back(std::move(unit));
}

}  // namespace

// A unit holds all phases of a row of output; where those are fewer rows than a tile has, those of several rows, if these have no tiles of
// their own.
void Plan::make_units() {
  weights = 0;
  const StencilAxis &d = axis[0], &h = axis[1], &w = axis[2];
  const i64 room = kMaxRows / (run() * block);
  std::vector<Unit::Lead> leads;
  for (i64 pd = d.out_begin; pd < d.out_end; ++pd)
    for (i64 ph = h.out_begin; ph < (rows.along(1) ? rows.outs : h.out_end); ++ph) leads.push_back({pd, ph});
  // Rows of output that are written together are longer stretches of memory: where sums are short, that counts.
  const bool light = channels * taps <= kLightTerms * i64(leads.size()) * rows.points() * (w.out_end - w.out_begin);
  const i64 most = std::max<i64>({1, room, light ? kLightRows / (run() * block) : 1});
  const i64 step = rows.along(2) ? 1 : even(i64(leads.size()), most), end = rows.along(2) ? rows.outs : w.out_end;
  for (i64 at = 0; at < i64(leads.size()); at += step)
    for (i64 begin = w.out_begin; begin < end; begin += run())
      make_unit(*this, {leads.begin() + at, leads.begin() + std::min(i64(leads.size()), at + step)}, begin, std::min(begin + run(), end),
                room >= 1);
}

}  // namespace tconv
