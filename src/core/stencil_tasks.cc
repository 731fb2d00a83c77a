// SPDX-License-Identifier: Apache-2.0
// How the work of a plan is shared out: boxes of positions, and tasks so that threads end together.
#include "parallel.h"
#include "plan.h"

namespace tconv {
namespace {

constexpr i64 kTasks = 4;  // of a thread, about

// Estimated cycles of a task.
double cost(const Plan& p, const Boxes& boxes, i64 task) {
  const Box box = boxes(p, p.tasks.box(task));
  double part = double(box.batches) / double(p.box_batch);
  for (int i = 0; i < 3; ++i) part *= double(box.size[i]) / double(p.axis[i].box);
  const i64 first = p.tasks.first_block(task), outputs = std::min((first + p.tasks.blocks_at_once) * p.block, p.outputs) - first * p.block;
  return part * (p.pack_cycles + std::max(p.box_cycles - p.pack_cycles, 0.0) * double(outputs) / double(p.outputs));
}

}  // namespace

Boxes::Boxes(const Plan& p)
    : batches(ceil_div(p.batch, p.box_batch)), count(batches * p.axis[0].boxes * p.axis[1].boxes * p.axis[2].boxes) {}

Box Boxes::operator()(const Plan& p, i64 index) const {
  Box b;
  for (int i = 2; i >= 0; --i) {
    const StencilAxis& a = p.axis[i];
    const i64 turn = index % a.boxes;
    index /= a.boxes;
    b.at[i] = a.begin(turn), b.size[i] = a.begin(turn + 1) - b.at[i];
  }
  b.batch = index * p.box_batch;
  b.batches = std::min(p.box_batch, p.batch - b.batch);
  return b;
}

// Depthwise layers have many groups of little work: whole chunks of them are one task. Every run of blocks packs the inputs anew: as many
// as end first.
void share_out(Plan& p) {
  const Boxes all(p);
  const i64 boxes = std::max<i64>(1, all.count), wanted = p.threads > 1 ? kTasks * p.threads : 1;
  const i64 groups = even(p.groups, p.groups / std::max<i64>(1, ceil_div(wanted, boxes))), chunks = ceil_div(p.groups, groups);
  Plan::Tasks best{boxes, groups, 1, p.blocks, all.count * chunks};
  double lowest = 1e300;
  for (i64 r = 1, most = std::min(p.blocks, ceil_div(2 * wanted, boxes * chunks)); most > 1 && r <= most; ++r) {
    const i64 wide = ceil_div(p.blocks, r), runs = ceil_div(p.blocks, wide);
    p.tasks = {boxes, groups, runs, wide, all.count * chunks * runs};
    const double end = last_end(p.tasks.count, p.threads, [&](i64 task) { return cost(p, all, task); });
    if (end < 0.99 * lowest) lowest = end, best = p.tasks;
  }
  p.tasks = best;
}

}  // namespace tconv
