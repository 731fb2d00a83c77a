// SPDX-License-Identifier: Apache-2.0
// One input and one output channel a group, the columns of a row adjacent in memory: lanes run along a row of output, over its stride
// phases. Nothing is transposed: a panel holds rows of the input with zeros around them, and a row of output is a sum of vectors of it,
// every column once for each phase, times weights that repeat along the row.
//
//   panel      a b c                         stride 2, weights w0 w1 w2 w3
//   chosen     a  a  b  b    b  b  c  c      y = the first * (w0 w1 w0 w1) + the second, one position later, * (w2 w3 w2 w3)
//
// Vectors of 32 bytes and more choose so in registers, by numbers of lanes; an output that lacks a tap chooses a zero. For narrower ones,
// and periods longer than a vector, the panel repeats every column, and is read in place: then phases of a row must all read the same
// positions, as where kernels are a multiple of the stride, and be a power of two.
#pragma once

#include <algorithm>
#include <string>

#include "depthwise.h"

namespace tconv {

struct DepthwiseRows {
  DepthwiseRows(const Spec& spec, Direction direction, int threads, i64 lanes, i64 element_bytes);

  static constexpr i64 kBeyond = 16;  // elements of a vector that a row's last one is read with

  // Why it cannot compute a depthwise problem, or nothing.
  static std::string refusal(const Spec& spec, Direction direction, i64 lanes, i64 element_bytes);

  // Rows of output that are summed from one panel, and the rows of input that it holds.
  struct Chunk {
    i64 begin[2], end[2];  // of the input, depth and rows
    std::vector<RowTaps> rows;
    std::vector<i64> reads, weights;  // a tap's offsets in the panel and in a channel's weights
  };

  StencilAxis axis[3];
  i64 lanes;
  i64 batch, channels;
  i64 period, pitch;        // phases of a row of output; elements of a tap's weights, which repeat so often that a vector begins anywhere
  i64 taps, along;          // along a row, of one phase; as many, if vectors hold the inputs of all, or 0
  RowInputs inputs;         // see RowSums
  i64 repeats;              // of a column in the panel
  i64 line;                 // elements of a row of the panel
  i64 pieces, positions;    // a row is cut into pieces of so many positions
  i64 panel;                // elements of the largest
  i64 outputs;              // that a vector advances by
  std::vector<i64> shifts;  // where along a row taps read
  std::vector<std::vector<i64>> order;  // [tap of a phase][phase]: index into the kernel's row, or -1
  std::vector<std::int32_t> words;      // [tap of a phase][words_pitch]: see RowSums
  i64 words_pitch;
  std::vector<Chunk> chunks;
  bool large;  // an output that goes past the caches
  int threads;

  i64 kernel_rows() const { return axis[0].kernel * axis[1].kernel; }
  i64 weight_elements() const { return channels * kernel_rows() * taps * pitch; }
  i64 room() const { return std::max(line, positions * period); }  // of a row of input, or of output
  i64 workspace() const { return panel + room() + kBeyond; }

 private:
  void number_words(i64 element_bytes);
  void make_chunks(i64 element_bytes);
  void add_row(Chunk& chunk, const AxisReads (&along)[2], i64 depth, i64 row) const;
};

// Estimated cycles on one thread.
double cycles(const DepthwiseRows& plan);

template <class T>
void pack_weights(const DepthwiseRows& plan, const Kernels<T>& kernels, View<const T> weight, i64 group_stride, T* packed);

template <class T, class S>
void run(const DepthwiseRows& plan, const Kernels<T>& kernels, View<const T> in, const Weights<T>& weights, const Epilogue<T>& epilogue,
         View<S> out);

}  // namespace tconv
