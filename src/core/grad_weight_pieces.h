// SPDX-License-Identifier: Apache-2.0
// What the microkernel is told about the tiles of a box: which elements of the panels they multiply (grad_weight.h).
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <mutex>
#include <vector>

#include "grad_weight.h"

namespace tconv {

// A box of positions, and what its taps read of dy: rows out_at .. out_at + out_size - 1 along depth and height.
struct Window {
  Window(const GradWeight& p, i64 index);

  const GradWeight& plan;

  i64 image, images, at[3], size[3], out_at[2], out_size[2];
  i64 pitch;                    // positions of a row of lanes
  i64 columns, plane, channel;  // of the panel of dy
  i64 step;                     // elements from column to column
  std::vector<i64> order[2];    // of its rows along depth and height: stride phases one after another, so that what a tap reads is adjacent

  i64 positions() const { return images * size[0] * size[1] * pitch; }
  i64 zeros() const { return channel - round_up(pitch, 16); }
  // Where a row of dy lies, and in it what a tap reads for the first position.
  i64 row(i64 n, i64 od, i64 oh) const {
    if (plan.raw) return n * plan.lie[0] + (od - out_at[0]) * plan.lie[2] + (oh - out_at[1]) * plan.lie[3];
    return ((n * out_size[0] + order[0][std::size_t(od - out_at[0])]) * out_size[1] + order[1][std::size_t(oh - out_at[1])]) * columns;
  }
  i64 column(const Reach& t) const;
  // Inputs of the box, along one axis, that a tap joins to outputs.
  i64 begin(int i, const Reach& t) const { return std::clamp<i64>(t.begin - at[i], 0, size[i]); }
  i64 end(int i, const Reach& t) const { return std::clamp<i64>(t.end - at[i], 0, size[i]); }
};

// One tile in one part of a box: where its numbers begin in the lists.
struct Piece {
  i64 rows, first, last, runs;
  std::size_t rows_at, lanes_at, at;
};

// All tiles of a box, part by part: the same for every group and block of lanes, and for all boxes that the border cuts alike.
struct Pieces {
  std::vector<i64> key;
  std::vector<i64> rows_at, lanes_at, at;
  std::vector<Piece> pieces;
  std::vector<std::size_t> ends;  // of every part
};

// The pieces of boxes, for so many output channels; the latest are kept.
class Tables {
 public:
  Tables(const GradWeight& p, i64 outputs);

  const i64 outputs;
  const Pieces& operator()(const Window& box);

 private:
  struct Row {
    std::array<const Reach*, 3> tap;
    i64 output, at;
  };

  void add(Pieces& to, const Window& box, const std::vector<Row>& tile, i64 r, i64 r_end, i64 c, i64 c_end) const;

  const GradWeight& p_;
  std::vector<std::vector<Row>> tiles_;
  std::vector<Pieces> kept_;
  std::size_t oldest_ = 0;
};

// Tables for the tasks of one call: one for each thread at work.
class Pool {
 public:
  explicit Pool(const GradWeight& p) : p_(p) {}

  // Gives back what it took.
  struct Return {
    Pool* pool;
    void operator()(Tables* t) const;
  };
  std::unique_ptr<Tables, Return> take(i64 outputs);

 private:
  const GradWeight& p_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Tables>> free_;
};

}  // namespace tconv
