// SPDX-License-Identifier: Apache-2.0
// Geometry of winograd.h: which tiles, families of phases, boxes; and what they are expected to cost.
#include <algorithm>

#include "parallel.h"
#include "winograd.h"

namespace tconv {
namespace {

// What a box may take of a core's second-level cache: less where all weights stay there, more where they come from far away; and the
// fewest tiles worth reading weights for, whose inputs take no more than so much memory of a thread.
constexpr i64 kFewWeightBytes = 1 << 20, kManyWeightBytes = 24 << 20;
constexpr i64 kFewInputBytes = 384 << 10, kInputBytes = 768 << 10, kManyInputBytes = 1280 << 10;
constexpr i64 kProductBytes = 384 << 10, kSumsBytes = 768 << 10, kFewestTiles = 12, kMostInputBytes = 6400 << 10;

// By blocks: from so many bytes of transformed weights on, with no more than so many of inputs, and of products and of sums of a block; the
// weights of a block take as long as multiplying so many tiles by them.
constexpr i64 kOnceBytes = 512 << 10, kSharedBytes = 16 << 20, kAllBytes = 2 << 20, kOnceTilesMore = 9;
constexpr i64 kNearBytes = 512 << 10;  // of the weights that are transformed at a time
// Then tiles take so much more, and a transformed weight so many cycles (more where tiles have three axes), and one that is read, which
// comes from memory where there are so many bytes of them. (Fitted to 20 layers of 128 to 1024 channels.)
constexpr double kOnceTiles = 1.13, kOnceCycles = 0.34, kDeepOnceCycles = 1, kReadCycles = 0.5, kReadFarCycles = 1.2,
                 kFarWeightBytes = 32 << 20;

// Axes whose tiles take so many points round worse: of two axes both may, of three, or where sums are short, one. Each has to save so much
// of the time, and more where every point has sums.
constexpr i64 kManyPoints = 5;
constexpr double kWorthPoints = 0.02, kWorthSums = 0.05;

// With such an axis, sums have two parts at least, unless those were so short.
constexpr i64 kFewestTerms = 32, kFewSums = 128;

// And how much longer its transforms take: most of their factors are no longer 1 and -1. Transforms of three axes pass over more than two.
constexpr double kManyTake = 0.06, kDeepTake = 0.6;

// Products of an axis, beside those of simpler tiles, that are few enough to consider.
constexpr double kFewer = 0.97;

// Of a task: reading a block's weights takes as long as multiplying so many tiles by them, and transforming the inputs as so many blocks.
constexpr double kWeightTiles = 6, kInputBlocks = 0.5;

// What counts of the cycles of products, of transforms and of what is moved, and cycles of a weight that every box reads, to compare with
// the estimates for direct kernels, which come out lower than these take; and where caches keep pace (fitted to 59 layers,
// about which the estimates scatter by 6 to 8 %), forward and by the input.
struct Against {
  double products, transforms, moved, read;
};
constexpr Against kUsual{0.85, 0.85, 0.85, 0.13}, kQuickCaches{1.0, 0.63, 0, 0.1}, kQuickByInput{1.0, 0.72, 0, 0.1};

// Longer filters are cut into pieces of kPiece taps, along all axes together at most so many that their inputs fit the caches.
constexpr i64 kPiece = 3, kMostPieces = 9;

i64 most_taps(const Axis& a) { return ceil_div(a.kernel, a.stride); }
i64 piece_taps(i64 most) { return most > kMaxFilter ? kPiece : most; }

// Phases of an axis by the taps of their pieces and what they read, that of the most taps first. A phase's whole pieces end where it ends
// to read, forward, and begin where it begins, backward: phases of different lengths share as many as they can.
std::vector<Winograd::Class> make_classes(const Winograd::Along& a) {
  std::vector<Winograd::Class> found;
  const auto add = [&](i64 taps, i64 reach, const std::vector<i64>& in, i64 out) {
    const i64 points = a.tile + taps - 1;
    auto it = std::find_if(found.begin(), found.end(),
                           [&](const auto& c) { return c.taps == taps && c.reach == reach && (!a.forward || c.in == in); });
    if (it == found.end()) it = found.insert(it, {taps, reach, points, taps == 1 ? 1 : points, {}, {}});
    if (a.forward) it->in = in, it->out.push_back(out);
    if (!a.forward) it->in.insert(it->in.end(), in.begin(), in.end()), it->out = {0};
  };
  const i64 piece = piece_taps(ceil_div(a.kernel, a.stride()));
  for (i64 phase = 0; phase < a.stride(); ++phase) {
    const i64 taps = ceil_div(a.kernel - floor_mod(phase + a.crop, a.stride()), a.stride()), whole = taps / piece, rest = taps % piece;
    const i64 end = a.forward ? floor_div(phase + a.crop, a.stride()) + 1 : taps;
    std::vector<i64> in;
    for (i64 i = 0; i < whole; ++i) in.push_back(a.forward ? i * piece : phase + a.stride() * i * piece);
    if (whole) add(piece, a.forward ? end - whole * piece : 0, in, phase);
    if (rest) add(rest, a.forward ? end - taps : whole * piece, {a.forward ? 0 : phase}, phase);
  }
  std::stable_sort(found.begin(), found.end(), [](const auto& x, const auto& y) { return x.taps > y.taps; });
  return found;
}

Winograd::Along make_axis(const Axis& from, bool forward, i64 tile, bool shifted) {
  Winograd::Along a{};
  a.forward = forward, a.kernel = from.kernel, a.tile = tile;
  a.in_size = forward ? from.size : from.output(), a.out_size = forward ? from.output() : from.size;
  a.in_stride = forward ? 1 : from.stride, a.out_stride = forward ? from.stride : 1;
  a.in_lo = forward ? 0 : from.lo, a.out_lo = forward && !shifted ? from.lo : 0, a.crop = shifted ? from.lo : 0;
  a.first = floor_div(a.out_lo, a.out_stride);
  a.tiles = ceil_div(floor_div(a.out_lo + a.out_size - 1, a.out_stride) + 1 - a.first, a.tile);
  a.classes = make_classes(a);
  return a;
}

// The tiles that an axis may have, the simpler ones first: of 2 or 3 positions, which take 3 or 4 points, or one position more, which
// take 5. Phases read the same inputs, while a crop puts them at positions of their own; or they are counted from the first output on,
// where that saves a tile, which counts on small maps (k4 s2 p1 of 4: 5 positions).
std::vector<Winograd::Along> choices(const Axis& from, bool forward, i64 wanted) {
  const i64 taps = piece_taps(most_taps(from));
  std::vector<Winograd::Along> found;
  for (bool shifted : {false, true})
    for (i64 tile : {std::max<i64>(2, kManyPoints - taps), i64(2), kManyPoints + 1 - taps}) {
      if (shifted && (!forward || taps == 1)) continue;
      Winograd::Along next = make_axis(from, forward, taps == 1 ? 1 : wanted && taps < kMaxFilter ? wanted : tile, shifted);
      const auto fewer = [&](const auto& other) { return double(next.products()) < kFewer * double(other.products()); };
      if (std::all_of(found.begin(), found.end(), fewer)) found.push_back(std::move(next));
    }
  return found;
}

}  // namespace

i64 Winograd::Along::reach_begin() const {
  return std::min_element(classes.begin(), classes.end(), [](const Class& x, const Class& y) { return x.reach < y.reach; })->reach;
}
i64 Winograd::Along::reach_end() const {
  i64 end = reach_begin();
  for (const Class& c : classes) end = std::max(end, c.reach + *std::max_element(c.in.begin(), c.in.end()) / in_stride + c.taps);
  return end;
}
bool Winograd::Along::adds(const Class& c, i64 out) const {
  return std::any_of(&classes.front(), &c, [&](const Class& x) { return std::count(x.out.begin(), x.out.end(), out) > 0; });
}
i64 Winograd::Along::products() const {
  i64 all = 0;
  for (const Class& c : classes) all += c.points * i64(c.in.size() * c.out.size());
  return tiles * all;
}

std::string Winograd::refusal(const Spec& spec) {
  int several = 0, most = 0;  // axes with more than one tap in a phase, and with as many as there are transforms for
  double pieces = 1;
  for (const Axis& a : spec.axis) {
    if (a.dilation != 1 && a.kernel > 1) return "its taps are dilated";
    if (a.kernel < a.stride) return "a kernel smaller than its stride leaves phases without taps";
    if (a.stride > 64) return "its strides are longer than 64";
    const i64 taps = most_taps(a);
    pieces *= double(taps / piece_taps(taps));
    several += taps > 1, most += taps == kMaxFilter;
  }
  if (pieces > kMostPieces) return "a stride phase has more than 9 pieces of 3 taps";
  if (several == 3 && most > 1) return "4 taps along two of three axes would round too much";
  return several ? "" : "no stride phase has more than 1 tap along an axis";
}

Winograd::Winograd(const Spec& spec, Direction direction, const Isa& isa, int tile, int threads_, i64 element_bytes, Serves serves,
                   bool every_call)
    : Blocks((direction == Direction::forward ? spec.out_channels : spec.in_channels) / spec.groups,
             element_bytes == 8 ? isa.f64->lanes : isa.f32->lanes),
      batch(spec.batch),
      groups(spec.groups),
      multiply(1) {
  const bool forward = direction == Direction::forward;
  channels = (forward ? spec.in_channels : spec.out_channels) / groups;
  choose_tiles(spec, forward, tile, element_bytes, serves);  // on every processor the same: they round differently
  threads = threads_, multiply = isa.multiply, quick_caches = isa.quick_caches;
  share_out(element_bytes, every_call);
  room = std::max(points * std::max(channels, block), kRoomBytes / element_bytes);
  // One family: its inputs stay, and the sums of some blocks go out before the next ones begin. Several: one after the other.
  blocks_at_once = families.size() > 1 ? blocks_per_run
                                       : std::clamp<i64>(kSumsBytes / (images * out_positions * block * element_bytes), 1, blocks_per_run);
}

// Of all tiles that the axes may have those that take the fewest cycles, on one thread: they round differently. Rounding grows with every
// axis of many points, and with three transforms on one another: shorter parts of sums make up for it.
void Winograd::choose_tiles(const Spec& spec, bool forward, int wanted, i64 element_bytes, Serves serves) {
  std::vector<Along> of[3];
  for (int i = 0; i < 3; ++i) of[i] = choices(spec.axis[i], forward, wanted);
  // Where phases of 4 taps have no simpler tiles.
  const i64 no_less = std::count_if(of, of + 3, [](const auto& tiles) { return tiles.front().classes.front().points >= kManyPoints; });
  const double never = 1e300, worth = serves == Serves::gradients ? kWorthSums : kWorthPoints;
  threads = 1;
  const auto take = [&](const std::array<std::size_t, 3>& choice) {
    for (std::size_t i = 0; i < 3; ++i) axis[i] = of[i][choice[i]];
    const i64 many = many_points();
    terms = kTerms >> (many + deep());
    make_families();
    if (many && serves != Serves::gradients) terms = std::min(terms, std::max(kFewestTerms, ceil_div(depth, 2)));
    share_out(element_bytes, serves == Serves::calls);
    if (!wanted && many > std::max<i64>(no_less, deep() || depth <= kFewSums ? 1 : 2)) return never;
    return (1 + worth * double(many)) * cycles(*this, serves == Serves::calls);
  };
  std::array<std::size_t, 3> best{};
  double least = never;
  for (std::size_t d = 0; d < of[0].size(); ++d)
    for (std::size_t h = 0; h < of[1].size(); ++h)
      for (std::size_t w = 0; w < of[2].size(); ++w)
        if (const double all = take({d, h, w}); all < least) least = all, best = {d, h, w};
  take(best);
}

void Winograd::make_families() {
  families.clear();
  weights = depth = points = 0;
  for (const Class& d : axis[0].classes)
    for (const Class& h : axis[1].classes)
      for (const Class& w : axis[2].classes) {
        const auto product = [&](auto of) { return i64(of(d)) * i64(of(h)) * i64(of(w)); };
        Family f{{&d, &h, &w},
                 product([](const Class& c) { return c.points; }),
                 product([](const Class& c) { return c.weights; }),
                 product([](const Class& c) { return c.in.size(); }),
                 product([](const Class& c) { return c.out.size(); }),
                 weights};
        weights += f.weights * f.ins * f.outs;
        depth = std::max(depth, f.ins * channels), points = std::max(points, f.points);
        families.push_back(f);
      }
}

// The tiles that the caches have room for.
i64 Winograd::room_of_box(i64 element_bytes) const {
  i64 inputs = 0, products = 0, sums = block * element_bytes;
  for (const Family& f : families) {
    inputs = std::max(inputs, f.points * f.ins * channels * element_bytes);
    products = std::max(products, f.points * block * element_bytes);
  }
  for (const Along& a : axis) sums *= a.tile * a.out_stride;
  const i64 weight_bytes = weights * channels * blocks * block * element_bytes;
  const i64 most = weight_bytes <= kFewWeightBytes ? kFewInputBytes : weight_bytes <= kManyWeightBytes / 4 ? kInputBytes : kManyInputBytes;
  const i64 fewest = std::clamp<i64>(kMostInputBytes / inputs, 1, kFewestTiles);
  return std::max(fewest, std::min({most / inputs, kProductBytes / products, kSumsBytes / sums}));
}

i64 Winograd::piece_tiles() const {
  const int i = outermost();
  const i64 all = i < 0 ? batch : axis[i].tiles;
  return all ? all_tiles() / all * ceil_div(all, pieces) : 0;
}

i64 Winograd::piece_outputs() const {
  const int cut = outermost();
  i64 all = cut < 0 ? ceil_div(batch, pieces) : batch;
  for (int i = 0; i < 3; ++i) {
    const Along& a = axis[i];
    all *= i == cut ? std::min(a.out_size, a.out_stride * a.tile * ceil_div(a.tiles, pieces)) : a.out_size;
  }
  return all;
}

i64 Winograd::shared() const {
  i64 all = 0;
  for (const Family& f : families) all += f.points;
  return all * all_tiles() * pitch();
}

i64 Winograd::channels_at_once(const Family& f, i64 element_bytes) const {
  const i64 part = even(channels, terms), bytes = f.weights * block * part * element_bytes;
  return parts_in_phases() ? std::min(channels, part * std::max<i64>(1, kNearBytes / bytes)) : channels;
}

std::array<i64, Winograd::kParts> Winograd::parts() const {
  i64 most = 0;
  for (const Family& f : families) most = std::max(most, f.weights);
  return {by_blocks ? 0 : points * tiles * pitch(),
          (by_blocks ? piece_tiles() : tiles) * product_pitch(),
          (by_blocks ? piece_outputs() : images * out_positions * blocks_at_once) * block,
          images * in_positions * pixel_pitch(),
          2 * room,
          room,
          blocks * block,
          by_blocks ? channels * axis[0].kernel * axis[1].kernel * axis[2].kernel * block : 0,
          by_blocks ? most * channels * block : 0};
}

// Where transformed weights would be many, and inputs, products and sums are few. It does not hang on the number of threads.
bool Winograd::worth_blocks(i64 element_bytes) const {
  double all = double(batch), sums = double(batch * block * element_bytes);  // sizes may be any numbers
  for (const Along& a : axis) all *= double(a.tiles), sums *= double(a.out_size);
  const double weight_bytes = double(weights) * double(channels * width(0, blocks) * element_bytes);
  if (all == 0 || all * double(product_pitch() * element_bytes) > kAllBytes || sums > kAllBytes || weight_bytes < kOnceBytes) return false;
  const bool one_phase = std::all_of(families.begin(), families.end(), [](const Family& f) { return f.ins == 1; });
  return (one_phase || parts_in_phases()) && double(shared() * element_bytes) <= std::min(double(kSharedBytes), weight_bytes / 2);
}

// By blocks: as many pieces as end first, where each takes the time of some more tiles for its weights.
void Winograd::share_out(i64 element_bytes, bool every_call) {
  by_blocks = every_call && worth_blocks(element_bytes);
  if (!by_blocks) return share_boxes(room_of_box(element_bytes));
  grow_box(std::min(room_of_box(element_bytes), ceil_div(all_tiles(), 2 * threads)));
  runs = 1, blocks_per_run = blocks;
  const int cut = outermost();
  const i64 most = std::min<i64>(cut < 0 ? batch : axis[cut].tiles, threads);
  double lowest = 1e300;
  i64 best = 1;
  for (pieces = 1; pieces <= most; ++pieces)
    if (const double end = double(ceil_div(blocks * pieces, threads) * (piece_tiles() + kOnceTilesMore)); end < 0.98 * lowest)
      lowest = end, best = pieces;
  pieces = best;
}

// Boxes as large as there is room for, each for all blocks; where they would not feed all threads, smaller ones and runs of blocks; where
// there are few for a thread, some more if threads end closer together: whatever ends first. Every task reads the weights of its blocks,
// and transforms the inputs.
void Winograd::share_boxes(i64 most) {
  double lowest = 1e300;
  i64 best = most, best_more = 0;
  const auto consider = [&](i64 size, i64 more) {
    grow_box(size, more);
    const i64 tasks = std::max<i64>(1, boxes() * groups), wanted = threads > 1 ? ceil_div(2 * threads, tasks) : 1;
    for (i64 r = 1; r <= std::min(blocks, wanted); ++r) {
      const i64 wide = ceil_div(blocks, r);
      const double last = end(wide);
      if (last < 0.98 * lowest) lowest = last, best = size, best_more = more, blocks_per_run = wide, runs = ceil_div(blocks, wide);
    }
    return wanted > 1;
  };
  for (i64 size = most; consider(size, 0) && std::max(kFewestTiles, smaller()) < tiles;) size = std::max(kFewestTiles, smaller());
  if (boxes() * groups <= kFewTasks * threads)
    for (i64 more = 1; more < threads && more < 4; ++more) consider(best, more);
  grow_box(best, best_more);
}

// Tiles of a box of fewer images, or of one whose outermost axis is cut into one part more, or into some.
i64 Winograd::smaller() const {
  if (images > 1) return ceil_div(images, 2) * (tiles / images);
  i64 inner = tiles;
  for (const Along& a : axis) {
    inner /= a.box;
    if (a.box > 1) return std::min(a.box - 1, ceil_div(a.tiles, a.turns + 1 + a.turns / 4)) * inner;
  }
  return tiles;
}

// When the last thread ends, in tiles multiplied by a block of weights.
double Winograd::end(i64 wide) const {
  const auto cost = [&](i64 count, double of) { return of * (double(count) + kWeightTiles) + kInputBlocks * double(count); };
  const i64 of_run = std::max<i64>(1, boxes()), turns = ceil_div(blocks, wide), tasks = of_run * turns * groups;
  if (threads == 1 || tasks > 2 * kFewTasks * threads) return double(ceil_div(tasks, threads)) * cost(tiles, double(wide));
  return last_end(tasks, threads, [&](i64 task) {
    i64 index = task % of_run, of_box = 1;
    for (int a = 2; a >= 0; --a) {
      const i64 turn = index % axis[a].turns;
      index /= axis[a].turns;
      of_box *= axis[a].begin(turn + 1) - axis[a].begin(turn);
    }
    return cost(of_box * std::min(images, batch - index * images), std::min(double(wide), all() - double(task / of_run % turns * wide)));
  });
}

void Winograd::grow_box(i64 most, i64 more) {
  images = tconv::grow_box(axis, batch, most, more);
  tiles = axis[0].box * axis[1].box * axis[2].box * images;
  in_positions = out_positions = 1;
  for (const Along& a : axis) {
    in_positions *= std::min(a.in_size, a.in_stride * (a.box * a.tile - 1 + a.reach_end() - a.reach_begin()));
    out_positions *= std::min(a.out_size, a.out_stride * a.box * a.tile);
  }
}

bool Winograd::deep() const {
  return std::all_of(axis, axis + 3, [](const Along& a) { return a.classes.front().taps > 1; });
}

i64 Winograd::many_points() const {
  return std::count_if(axis, axis + 3, [](const Along& a) { return a.classes.front().points >= kManyPoints; });
}

// Products and transforms of all tiles. Factors from layers of 16 to 512 channels: the transforms wait for the second-level cache, 10
// cycles a vector of inputs and point and 6 for all, 8 a vector of products or outputs, longer where there are many points; a product costs
// a tile's row 8 cycles a part besides its terms.
std::pair<double, double> Winograd::tile_cycles() const {
  const double vectors = double(ceil_div(channels, lanes)), of = double(ceil_div(outputs, lanes)),
               each = 1 + kManyTake * double(many_points()) + (deep() ? kDeepTake : 0.0);
  double all = double(batch), tile = 1, products = 0, transforms = 0;
  for (const Along& a : axis) all *= double(a.tiles), tile *= double(a.tile);
  for (const Family& f : families) {
    const i64 sum = f.ins * channels;
    products += take(1.05, multiply) * double(f.points * f.outs) * double(sum + 8 * ceil_div(sum, terms));
    transforms += each * ((10 * vectors + 6) * double(f.points * f.ins) + 8 * of * double(f.outs) * (double(f.points) + tile));
  }
  return {all * products, all * transforms};
}

double cycles(const Winograd& w, bool with_weights) {
  double moved_in = double(w.channels), moved_out = double(w.outputs);
  for (const Winograd::Along& a : w.axis) moved_in *= double(a.in_size), moved_out *= double(a.out_size);
  const double weights = double(w.weights * w.channels * w.width(0, w.blocks)),
               moved = double(w.batch) * (moved_in + moved_out) * 16 / w.lanes;
  const double element_bytes = w.lanes >= 8 ? 4 : 8;
  const Against& of = !w.quick_caches ? kUsual : w.axis[0].forward ? kQuickCaches : kQuickByInput;
  const auto [products, transforms] = w.tile_cycles();
  const double tiles = of.products * products + of.transforms * transforms + of.moved * moved;
  if (w.by_blocks) {
    const double read = double(w.channels * w.outputs * w.axis[0].kernel * w.axis[1].kernel * w.axis[2].kernel);
    const double far = std::min(1.0, read * element_bytes / kFarWeightBytes);
    return double(w.groups) * (kOnceTiles * tiles + (w.deep() ? kDeepOnceCycles : kOnceCycles) * weights +
                               (kReadCycles + (kReadFarCycles - kReadCycles) * far) * read);
  }
  // Weights too many for a share of the third-level cache hold everything up.
  const double bytes = weights * element_bytes, large = std::clamp(1.5 * bytes / double(kManyWeightBytes) - 0.5, 0.0, 1.0);
  const double read = bytes > double(kManyWeightBytes) ? 0.47 : of.read + 0.26 * large;
  const double packed = with_weights ? (0.85 + 1.28 * large) * weights : 0.0;
  return double(w.groups) * (tiles + read * double(w.boxes()) * weights + packed);
}

}  // namespace tconv
