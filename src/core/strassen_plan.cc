// SPDX-License-Identifier: Apache-2.0
// Geometry of strassen.h: which positions, boxes and parts of sums; and what they are expected to cost.
#include <algorithm>

#include "parallel.h"
#include "strassen.h"

namespace tconv {
namespace {

// Of a core's second-level cache: bytes of V, and of sums. Pairs of a box at most and, as long as threads have enough of them, at least.
constexpr i64 kInputBytes = 704 << 10, kSumsBytes = 384 << 10, kMostPairs = 192, kFewestPairs = 24;
// However few pairs that leaves, of turned inputs and of the sums of a block.
constexpr i64 kTurnedBytes = 3 << 20, kMostSumsBytes = 1 << 20;
constexpr double kFarWeightBytes = 16 << 20;
constexpr i64 kTermsAtOnce = 256;  // of V
// Terms of a part of a sum: a third of what direct sums have, as sums of quarters round twice as much.
constexpr i64 kPart = 96, kFewestTerms = 32, kSumParts = 3;

// Reading a block's weights takes as long as multiplying so many pairs by them, and joining inputs as so many blocks.
constexpr double kWeightPairs = 6, kInputBlocks = 0.3;
constexpr i64 kManyTasks = 8;  // of a thread: then they end together

}  // namespace

std::string Strassen::refusal(const Spec& spec, Direction direction, i64 lanes) {
  const bool forward = direction == Direction::forward;
  const i64 channels = (forward ? spec.in_channels : spec.out_channels) / spec.groups,
            outputs = (forward ? spec.out_channels : spec.in_channels) / spec.groups;
  for (const Axis& a : spec.axis)
    if (a.kernel != a.stride || (a.kernel > 1 && a.dilation > 1)) return "its kernels overlap or leave gaps";
  if (channels % 2) return "an odd number of channels has no halves";
  if (outputs == 0 || outputs % (2 * lanes)) return "half the channels that a group writes are not whole vectors";
  return {};
}

Strassen::Strassen(const Spec& spec, Direction direction, const Isa& isa, int threads_, i64 element_bytes_)
    : Blocks((direction == Direction::forward ? spec.out_channels : spec.in_channels) / spec.groups / 2,
             element_bytes_ == 8 ? isa.f64->lanes : isa.f32->lanes),
      batch(spec.batch),
      groups(spec.groups),
      element_bytes(element_bytes_),
      ins(1),
      outs(1),
      threads(threads_),
      multiply(isa.multiply),
      quick_caches(isa.quick_caches) {
  const bool forward = direction == Direction::forward;
  channels = (forward ? spec.in_channels : spec.out_channels) / groups / 2;
  double out_bytes = double(batch * 2 * outputs * groups * element_bytes);
  for (int i = 0; i < 3; ++i) {
    const Axis& from = spec.axis[i];
    Along& a = axis[i];
    a.in_size = forward ? from.size : from.output(), a.out_size = forward ? from.output() : from.size;
    a.in_stride = forward ? 1 : from.stride, a.out_stride = forward ? from.stride : 1;
    a.in_lo = forward ? 0 : from.lo, a.out_lo = forward ? from.lo : 0;
    a.first = floor_div(a.out_lo, a.out_stride), a.count = ceil_div(a.out_lo + a.out_size, a.out_stride) - a.first;
    a.tile = i == 2 ? 2 : 1, a.tiles = ceil_div(a.count, a.tile);
    kernel[i] = from.kernel, (forward ? outs : ins) *= from.kernel;
    out_bytes *= double(a.out_size);
  }
  large = out_bytes >= double(kStreamBytes);
  channels_at_once = channels <= kTermsAtOnce ? channels : round_up(even(channels, kTermsAtOnce), 16);
  phases_at_once = even(ins, kTermsAtOnce / channels_at_once);
  part = std::clamp(ceil_div(terms(), kSumParts), kFewestTerms, kPart);
  share_out();
}

void Strassen::grow_box(i64 most) {
  images = tconv::grow_box(axis, batch, most);
  pairs = axis[0].box * axis[1].box * axis[2].box * images;
  in_positions = out_positions = 1;
  for (const Along& a : axis) {
    in_positions *= std::min(a.in_size, a.in_stride * a.box * a.tile);
    out_positions *= std::min(a.out_size, a.out_stride * a.box * a.tile);
  }
}

// Boxes as large as the caches have room for, each for all blocks, or smaller ones with which threads end closer together; where they would
// not feed all threads, runs of blocks: whatever ends first.
void Strassen::share_out() {
  const i64 room = std::clamp<i64>(kInputBytes / (kStrassen * phases_at_once * channels_at_once * element_bytes), kFewestPairs, kMostPairs);
  const i64 turned = 2 * ins * pixel_pitch() * element_bytes, sums = 2 * outs * 2 * block * element_bytes;  // of a pair
  const i64 most = std::max<i64>(1, std::min({room, kTurnedBytes / turned, kMostSumsBytes / sums}));
  double lowest = 1e300;
  i64 best = most;
  for (i64 size = most; size == most || size >= kFewestPairs / 2; size = std::min(size, pairs) - 1) {
    grow_box(size);
    const i64 tasks = std::max<i64>(1, boxes() * groups), wanted = threads > 1 ? ceil_div(2 * threads, tasks) : 1;
    for (i64 r = 1; r <= std::min(blocks, wanted); ++r) {
      const i64 wide = ceil_div(blocks, r);
      const double end = double(ceil_div(tasks * ceil_div(blocks, wide), threads)) *
                         (double(wide) * (double(pairs) + kWeightPairs) + kInputBlocks * double(pairs));
      if (end < 0.98 * lowest) lowest = end, best = size, blocks_per_run = wide, runs = ceil_div(blocks, wide);
    }
    if (threads == 1 || tasks > kManyTasks * threads) break;
  }
  grow_box(best);
  blocks_at_once = std::clamp<i64>(kSumsBytes / std::max<i64>(1, images * out_positions * 2 * block * element_bytes), 1, blocks_per_run);
}

std::array<i64, Strassen::kParts> Strassen::parts() const {
  return {kStrassen * pairs * pitch(), kStrassen * pairs * block, images * out_positions * 2 * blocks_at_once * block,
          images * in_positions * pixel_pitch(), 2 * channels};
}

// Whole tiles of the microkernel; a vector of inputs joined, which waits for the second-level cache; a vector of each half of the outputs;
// a vector transposed. (Fitted to 15 layers of 256 to 1024 channels, forward and by the input, both layouts, and to vectors of 64 bytes;
// shorter ones take as long a byte; and 2 % more than fitted, which have to be saved, as errors grow.)
double cycles(const Strassen& s, bool channels_last, bool with_weights) {
  double pairs = double(s.batch), in = double(2 * s.channels), out = double(2 * s.outputs);
  for (const Strassen::Along& a : s.axis) pairs *= double(a.tiles), in *= double(a.in_size), out *= double(a.out_size);
  const double line = double(s.lanes * s.element_bytes) / double(kLine), chunks = double(s.chunks());
  const double turns = chunks > 1 ? double(ceil_div(s.blocks, s.blocks_at_once)) : 1;
  const double products = s.take(1.05, s.multiply) * double(kStrassen * s.outs) * double(s.terms() + 8 * ceil_div(s.terms(), s.part));
  const double joined = 110 * line * turns * double(s.ins * ceil_div(s.channels, s.lanes));
  const double parted = 26 * line * chunks * double(s.outs * s.outputs) / double(s.lanes);
  const double moved = channels_last ? 0 : 6 * line * double(s.batch) * (in + out) / double(s.lanes);
  const double weights = double(s.joined()), far = weights * double(s.element_bytes) / kFarWeightBytes;
  const double kept = 0.375 * double(s.boxes()) * weights + (with_weights ? (4.0 + 4.5 * std::min(1.5, far)) * weights : 0);
  return (s.quick_caches ? 0.875 : 0.9) * double(s.groups) * (pairs * (products + joined + parted) + moved + kept);
}

}  // namespace tconv
