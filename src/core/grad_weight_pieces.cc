// SPDX-License-Identifier: Apache-2.0
#include "grad_weight_pieces.h"

#include <algorithm>

namespace tconv {
namespace {

constexpr std::size_t kKept = 8;

// All that pieces depend on, beside the channels.
std::vector<i64> key_of(const GradWeight& p, const Window& box) {
  std::vector<i64> key{box.images, box.size[0], box.size[1], box.size[2], box.out_size[0], box.out_size[1]};
  for (int i = 0; i < 3; ++i) {
    if (i < 2) key.push_back(box.out_at[i] - box.at[i] * p.axis[i].stride);
    for (const Reach& t : p.axis[i].taps) key.push_back(box.begin(i, t)), key.push_back(box.end(i, t));
  }
  return key;
}

// Runs of which each begins where the one before it ends, for all rows, are one.
void join(Pieces& all, Piece& piece, i64 wide, i64 lanes, i64 step) {
  if (piece.first > 0 || piece.last < wide) return;
  for (i64 t = 1; t < piece.runs; ++t) {
    if (all.lanes_at[piece.lanes_at + t] != all.lanes_at[piece.lanes_at] + t * wide * lanes) return;
    for (i64 r = 0; r < piece.rows; ++r)
      if (all.rows_at[piece.rows_at + t * piece.rows + r] != all.rows_at[piece.rows_at + r] + t * wide * step) return;
  }
  piece.last = piece.runs * wide, piece.runs = 1;
  all.rows_at.resize(piece.rows_at + piece.rows), all.lanes_at.resize(piece.lanes_at + 1);
}

}  // namespace

Window::Window(const GradWeight& p, i64 index) : plan(p) {
  for (int i = 2; i >= 0; --i) {
    const Reaches& a = p.axis[i];
    const i64 along = ceil_div(a.size, a.box), turn = index % along;
    at[i] = turn * a.box, size[i] = std::min(a.box, a.size - at[i]);
    index /= along;
    if (i == 2) continue;
    out_at[i] = std::max<i64>(0, at[i] * a.stride + a.low);
    out_size[i] = std::max<i64>(0, std::min(a.output, (at[i] + size[i] - 1) * a.stride + a.high + 1) - out_at[i]);
    order[i].resize(std::size_t(out_size[i]));
    const i64 step = p.images_last ? 1 : a.stride;
    for (i64 phase = 0, next = 0; phase < std::min(step, out_size[i]); ++phase)
      for (i64 o = phase; o < out_size[i]; o += step) order[i][std::size_t(o)] = next++;
  }
  image = index * p.box_batch, images = std::min(p.box_batch, p.batch - image);
  pitch = p.vectors ? size[2] : round_up(size[2], p.width);
  columns = size[2] + p.axis[2].halo();
  // A vector along w may reach beyond the last column. An odd number of lines: planes a power of two apart would share cache sets.
  plane = round_up(images * out_size[0] * out_size[1] * columns + pitch - size[2], 16) | 16;
  channel = p.raw ? p.lie[1] : i64(p.phases.size()) * plane + round_up(pitch, 16);  // zeros at the end
  step = p.raw ? p.axis[2].stride * p.lie[4] : 1;
}

i64 Window::column(const Reach& t) const {
  const Reaches& w = plan.axis[2];
  if (plan.raw) return t.reach * plan.lie[4];
  return (std::lower_bound(plan.phases.begin(), plan.phases.end(), w.phase(t)) - plan.phases.begin()) * plane + w.shift(t);
}

Tables::Tables(const GradWeight& p, i64 outputs_) : outputs(outputs_), p_(p) {
  // Rows of one tap along depth and height, or of several where those are few, which then meet zeros at the border.
  i64 unit = outputs;
  for (int i = 2; i >= 0; --i) unit *= unit < kFewRows && !(p.raw && p.beyond) ? i64(p.axis[i].taps.size()) : 1;
  const i64 height = unit ? p.tile_height(unit) : 1;
  i64 in_unit = 0;
  for (const Reach& d : p.axis[0].taps)
    for (const Reach& h : p.axis[1].taps)
      for (const Reach& w : p.axis[2].taps)
        for (i64 o = 0; o < outputs; ++o, in_unit = (in_unit + 1) % unit) {
          if (in_unit % height == 0) tiles_.emplace_back();
          const i64 tap = (d.tap * p.axis[1].kernel + h.tap) * p.axis[2].kernel + w.tap;
          tiles_.back().push_back({{&d, &h, &w}, o, (o * p.taps + tap) * p.lanes});
        }
}

const Pieces& Tables::operator()(const Window& box) {
  std::vector<i64> key = key_of(p_, box);
  for (const Pieces& p : kept_)
    if (p.key == key) return p;
  if (kept_.size() < kKept) kept_.emplace_back(), oldest_ = kept_.size() - 1;
  Pieces& to = kept_[oldest_];
  oldest_ = (oldest_ + 1) % kKept;
  to = Pieces{std::move(key), {}, {}, {}, {}, {}};
  const i64 rows = box.images * box.size[0] * box.size[1], columns = round_up(even(box.size[2], p_.part), p_.vectors ? 1 : p_.width);
  const i64 runs = std::max<i64>(1, p_.part / box.size[2]);
  for (i64 r = 0; r < rows; r += runs)
    for (i64 c = 0; c < box.size[2]; c += columns) {
      for (const auto& tile : tiles_) add(to, box, tile, r, std::min(rows, r + runs), c, std::min(box.size[2], c + columns));
      to.ends.push_back(to.pieces.size());
    }
  return to;
}

// A tile in rows r .. r_end - 1 and columns c .. c_end - 1 of a box.
void Tables::add(Pieces& to, const Window& box, const std::vector<Row>& tile, i64 r, i64 r_end, i64 c, i64 c_end) const {
  struct Bounds {
    i64 begin[2], end[2], reach[2], at;
    bool operator()(i64 d, i64 h) const { return d >= begin[0] && d < end[0] && h >= begin[1] && h < end[1]; }
  };
  std::array<Bounds, kMaxRows> bounds;
  Piece piece{i64(tile.size()), c_end, c, 0, to.rows_at.size(), to.lanes_at.size(), to.at.size()};
  for (std::size_t i = 0; i < tile.size(); ++i) {
    const auto& [d_tap, h_tap, w_tap] = tile[i].tap;
    piece.first = std::min(piece.first, std::max(c, box.begin(2, *w_tap)));
    piece.last = std::max(piece.last, std::min(c_end, box.end(2, *w_tap)));
    bounds[i] = {{box.begin(0, *d_tap), box.begin(1, *h_tap)},
                 {box.end(0, *d_tap), box.end(1, *h_tap)},
                 {box.at[0] * p_.axis[0].stride + d_tap->reach, box.at[1] * p_.axis[1].stride + h_tap->reach},
                 tile[i].output * box.channel + box.column(*w_tap)};
  }
  if (piece.first >= piece.last) return;
  if (!p_.vectors) piece.first -= piece.first % p_.width, piece.last = round_up(piece.last, p_.width);
  const auto end = bounds.begin() + i64(tile.size());
  for (; r < r_end; ++r) {
    const i64 h = r % box.size[1], d = r / box.size[1] % box.size[0], n = r / box.size[1] / box.size[0];
    if (std::none_of(bounds.begin(), end, [&](const Bounds& b) { return b(d, h); })) continue;
    ++piece.runs;
    to.lanes_at.push_back(r * box.pitch * p_.lanes);
    for (auto b = bounds.begin(); b < end; ++b)
      to.rows_at.push_back((*b)(d, h) ? b->at + box.row(n, d * p_.axis[0].stride + b->reach[0], h * p_.axis[1].stride + b->reach[1])
                                      : box.zeros());
  }
  if (!piece.runs) return;
  if (p_.vectors) join(to, piece, box.size[2], p_.lanes, box.step);
  for (const Row& row : tile) to.at.push_back(row.at);
  to.pieces.push_back(piece);
}

std::unique_ptr<Tables, Pool::Return> Pool::take(i64 outputs) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (auto& t : free_)
    if (t->outputs == outputs) {
      std::unique_ptr<Tables, Return> found(t.release(), {this});
      std::swap(t, free_.back());
      free_.pop_back();
      return found;
    }
  return {new Tables(p_, outputs), {this}};
}

void Pool::Return::operator()(Tables* t) const {
  std::unique_ptr<Tables> owned(t);
  const std::lock_guard<std::mutex> lock(pool->mutex_);
  pool->free_.push_back(std::move(owned));
}

}  // namespace tconv
