// SPDX-License-Identifier: Apache-2.0
// The table of functions that one instruction set provides, and how to find it at run time.
#pragma once

#include "spec.h"

namespace tconv {

// Terms that a tile adds up in one go, about: with more, rounding errors grow and the weights of a tile leave the first-level
// cache; with fewer, storing the sums begins to cost.
constexpr i64 kTerms = 256, kFewTerms = 64;

// The terms of one go, for a sum of `all`: two goes rather than one, unless they were short.
inline i64 terms_at_once(i64 all, i64 few = kFewTerms) {
  const i64 half = ceil_div(all, 2);
  return half < few ? few : half < kTerms ? half : kTerms;
}

constexpr int kMaxRows = 12, kMaxVecs = 8;

// An output of so many bytes is larger than a thread's share of the last cache: who reads it next does not find it there, so it
// need not pass through.
constexpr i64 kStreamBytes = 16 << 20;
// One of so many does not stay in the caches of a core: lines that a tile is about to write are fetched meanwhile.
constexpr i64 kFarBytes = 4 << 20;
constexpr i64 kLine = 64;         // bytes of a line, at whose multiples such stores begin
constexpr i64 kSetsBytes = 4096;  // lines so far apart, or a multiple of it, share a set of the first-level cache, which holds
constexpr i64 kSetLines = 8;      // so many of them

// Where a tile's sums go: row r to sums[rows[r] + lane], added to what is there if `add`. With `woven` they are complete then, and P rows
// in turn, `phases`, are the stride phases of one row of output: they go there put together, row r to
// woven[r / P].to[column + lane * P + r % P], elements of T, or of BFloat16 if `rounded`. `stream` is as for Weave. Of several vectors the
// last one holds the lanes from `last` on: it may overlap the one before it, so that nothing is written beyond a row.
template <class T>
struct WovenRow {
  void* to;
  T bias;
};
template <class T>
struct TileSums {
  T* sums;
  const i64* rows;
  bool add;
  const WovenRow<T>* woven;
  i64 phases, column, last;
  bool stream, rounded;
};
constexpr bool weaves(i64 phases) { return phases == 8 || phases == 6 || (0 < phases && phases <= 4); }

// The microkernel: the sum over c < channels, t < taps of w[(c * taps + t) * R + r] * x[c * pitch + offsets[t] + lane] for R rows and V
// vectors of lanes; where there is a `row_step`, rows of w lie as they do in the layer's weight: w[r * row_step + c * taps + t]. The sum
// starts from zero and is added to earlier ones when it is complete, so that a long sum taken in parts rounds like a tree, not like a
// chain. Reads exactly V * lanes values of x a tap.
template <class T>
using Tile = void (*)(i64 channels, i64 pitch, i64 taps, const i64* offsets, const T* w, i64 row_step, const T* x, const TileSums<T>& to);

// The other microkernel, for lanes over channels: out[r][lane] (+)= sum over t < taps and first <= c < last of
// rows[t * R + r][c] * w[(offsets[t] + c) * lanes + lane], with R rows, V vectors of lanes, and `bias` (or null)
// added where `add` is false. Rows are read and written through one pointer each (Dukhan, arXiv:1907.02129).
constexpr int kGatherVecs = 2;  // at most
template <class T>
using Gathered = void (*)(i64 first, i64 last, i64 taps, const T* const* rows, const i64* offsets, const T* w, T* const* out, const T* bias,
                          bool add);

// Where the sums of rows at even steps go: row r to out + r * out_step, added to base + r * base_step if there is a base.
// `stream` asks for stores that go past the caches, and promises addresses that are multiples of a line.
template <class T>
struct Sums {
  const T* base;
  i64 base_step;
  T* out;
  i64 out_step;
  bool stream;
};

// The same products for `tiles` times R rows at even steps: row r of tap t is rows[t] + r * row_step.
template <class T>
using Stepped = void (*)(i64 first, i64 last, i64 taps, const T* const* rows, i64 row_step, const i64* offsets, const T* w,
                         const Sums<T>& sums, i64 tiles);

// The same products for sums over positions: out[at[r] + lane] += sum over runs t and first <= c < last of
// rows[rows_at[t * R + r] + c * step] * lanes[lanes_at[t] + c * width + lane], where a block of `width` lanes is V vectors. V = 0 stands
// for blocks of one lane: then vectors lie along c, first and last are whole vectors, and the step is 1.
template <class T>
using Correlated = void (*)(i64 runs, i64 first, i64 last, const i64* rows_at, const i64* lanes_at, const T* rows, i64 step, const T* lanes,
                            T* out, const i64* at);

// The same products for two panels whose lanes lie side by side: out[r * out_pitch + lane] (+)= sum over c < count of
// rows[c * rows_pitch + r] * lanes[c * lanes_pitch + lane], with R rows and V vectors.
template <class T>
using Outer = void (*)(i64 count, const T* rows, i64 rows_pitch, const T* lanes, i64 lanes_pitch, T* out, i64 out_pitch, bool add);

// The write-back: y[q * phases + p] = rows[p][q] + bias for q < count: the stride phases of one output row, interleaved.
// `stream` asks for stores that go past the caches, where y is too large to be found there again.
template <class T>
using Weave = void (*)(T* y, const T* const* rows, i64 phases, i64 count, T bias, bool stream);

// Its inverse, which takes stride phases apart: to[p * to_pitch + q] = from[q * phases + p] for q < count.
template <class T>
using Unweave = void (*)(const T* from, i64 phases, i64 count, T* to, i64 to_pitch);

// A transposing copy between lanes and channels: to[a + b * to_pitch] = from[a * from_pitch + b] + (bias ? bias[a] : 0).
template <class T>
using Transpose = void (*)(const T* from, i64 from_pitch, T* to, i64 to_pitch, i64 as, i64 bs, const T* bias);

// What follows the sums of an output, while they are still in the first-level cache: row[i] = f(row[i] + bias) for i < count. `slope`
// belongs to leaky_relu alone. NaN stays NaN.
enum class Activation { none, relu, leaky_relu, tanh, sigmoid };
template <class T>
using Activate = void (*)(T* row, i64 count, T bias, Activation kind, T slope);

// All that a layer does to its sums: `bias` holds one value an output channel, or is null. A method that knows nothing of activations may
// add the bias its own way where there is none, but an element is activated exactly once, when its sum is complete.
template <class T>
struct Epilogue {
  const T* bias = nullptr;
  Activation activation = Activation::none;
  T slope = 0;
};

// Copies rows of adjacent elements and puts zeros around them: to[0 .. columns) = 0 .. 0, from[0 .. end - begin), 0 .. 0.
template <class T>
using Copy = void (*)(const T* from, i64 from_pitch, T* to, i64 to_pitch, i64 rows, i64 begin, i64 end, i64 columns);

// The same for stretches that follow one another in `to`: to[to .. to + zeros) = 0, and after them `count` elements from `from` on, of the
// `elements` that there are. Whole vectors are stored: less than one past the last stretch is written too. While one channel is copied, the
// next one, `ahead` elements further on, is fetched.
struct Stretch {
  i64 to, zeros, from, count;
};
template <class T>
using CopyStretches = void (*)(const T* from, i64 elements, i64 ahead, T* to, const Stretch* stretches, i64 count);

// Taps of a row of a depthwise layer, lanes over channels: tap t < taps <= kMaxRun reads what tap 0 reads t positions further on, so that
// neighbouring positions share their inputs.
constexpr int kMaxRun = 4;
struct DepthwiseRun {
  i64 x, w, w_step, taps;
};

// What positions read: the same runs of each of `rows` rows of the input and of the kernel; position q is q * x_step further on.
template <class T>
struct DepthwiseReads {
  i64 rows, count, x_step;
  const T *const *x, *const *w;  // [row]
  const DepthwiseRun* runs;
};

// A stretch of positions, begin <= q < end, and `bias` or null: y[q * y_step + c] = bias[c] + sum over rows r, runs and taps t of
// x[r][run.x + (q + t) * x_step + c] * w[r][run.w + t * run.w_step + c].
template <class T>
using DepthwiseRow = void (*)(T* y, i64 y_step, const DepthwiseReads<T>& reads, i64 begin, i64 end, i64 channels, const T* bias);

// Its weight's gradient, of a row of x and one of dy: for every tap t along them and begin <= q < end of it,
// sums[t.sum + c] += x[q * x_step + c] * dy[t.at + q * dy_step + c].
struct GradTap {
  i64 sum, at, begin, end;
};
template <class T>
using DepthwiseGradRow = void (*)(T* sums, const T* x, i64 x_step, const T* dy, i64 dy_step, const GradTap* taps, i64 count, i64 channels);

// Rows of a depthwise layer, lanes along them: a row's y[o] = bias + sum over its taps t, which begin with number `first`, of
// x[x_at[t] + o] * w[w_at[t] + (start + o) % period] for o < columns. A tap's weights repeat until a vector of them could begin at any.
// Inputs lie so in place; their period is a power of two. Or x holds once what serves a period of outputs, which is not longer than a
// vector, and it is repeated in registers: then of the taps `along` after one another lie in one row of x, and words + t * words_pitch
// numbers for tap t of these the words of a vector, read where tap 0 reads, that are the inputs of the outputs of a period and of those
// that follow; with gaps, a number below zero stands for a tap that an output lacks. A vector advances by so many `outputs` and `positions`
// of x, whole periods. Inputs in place, of period 1, are chosen so from two vectors, unless `along` is 0.
// Row (depth, row) lies at y + depth * y_depth + row * y_row. Whole vectors are read. `stream` is as for Sums.
enum class RowInputs { in_place, once, once_with_gaps };
constexpr bool chooses(i64 vector_bytes) { return vector_bytes >= 32; }            // AVX2
constexpr bool chooses_of_two(i64 vector_bytes) { return vector_bytes >= kLine; }  // AVX-512
struct RowTaps {
  i64 depth, row, first, taps;
};
struct RowPlace {  // a vector of outputs: the first one, the position of x that it begins to read at, the outputs of its period before it
  i64 o, at, turn;
};
template <class T>
struct RowSums {
  const T *x, *w;
  const i64 *x_at, *w_at;
  RowInputs inputs;
  i64 along, period, start, outputs, positions;
  RowPlace last;  // the vector that ends with the row
  const std::int32_t* words;
  i64 words_pitch;
  T* y;
  i64 y_depth, y_row, columns;
  T bias;
  bool stream;
};
template <class T>
using SumRows = void (*)(const RowTaps* rows, i64 count, const RowSums<T>& of);

// A transform of Winograd's along one axis (transforms.h), for `outer` batches of lines and `run` adjacent lanes of each:
// to[o * to.outer + i * to.line + lane] (+)= sum over j of matrix[i][j] * from[o * from.outer + j * from.line + lane].
struct LinePitch {
  i64 line, outer;
};
template <class T>
using Lines = void (*)(const T* from, LinePitch from_pitch, T* to, LinePitch to_pitch, i64 outer, i64 run, bool add);

// F(m, r): m outputs of r taps from m + r - 1 products. With one tap all are copies, of m inputs, one weight and m outputs. For the
// weight's gradient the matrices of weights and outputs are transposed: m gradients to points, points to r taps. Products equal to `ones`
// make every output 1.
constexpr int kMaxTile = 4, kMaxFilter = 4;
template <class T>
struct Transform {
  Lines<T> input, weight, output, from_grad, to_taps;
  T ones[kMaxTile + kMaxFilter - 1];
};

// Strassen's product of quarters (quarters.h). To what is multiplied: to[i * plane + p * pitch + lane] = a sum of the quarters
// from[2 p][lane], from[2 p][half + lane], from[2 p + 1][lane], from[2 p + 1][half + lane], for p < count and lane < run; with a `scale`
// times scale[lane] or scale[half + lane].
constexpr int kStrassen = 7;
template <class T>
using Join = void (*)(const T* const* from, i64 half, const T* scale, i64 count, i64 run, T* to, i64 pitch, i64 plane);

// From products: sums of from[i * plane + p * pitch + lane] to to[2 p][at + lane] and, `half` further on, to those of the other half, and
// to to[2 p + 1] likewise; null is nowhere. They are multiplied by scale[lane], or scale[whole_half + lane], and so is a bias, or null,
// added. `stream` as for Sums. The run is whole vectors.
template <class T>
struct QuarterSums {
  T* const* to;
  i64 at, half;
  bool add;
  const T *scale, *bias;
  i64 whole_half;
  bool stream;
};
template <class T>
using Part = void (*)(const T* from, i64 plane, i64 pitch, i64 count, i64 run, const QuarterSums<T>& sums);

// Half precision to float and back, and pairs of it as words: to[i] = (first[i], second[i]), or (first[i], 0) without a second (halves.h).
// As bfloat16, rows of numbers, to[r * to_pitch + i] = from[r * from_pitch + i] for i < count, and `turn`ed ones, to[a + b * to_pitch] =
// from[a * from_pitch + b]; both may read a whole row of from_pitch.
enum class Half { bfloat16, float16 };
struct BFloat16 {
  static constexpr Half kind = Half::bfloat16;
  std::uint16_t bits;
};
struct Float16 {
  static constexpr Half kind = Half::float16;
  std::uint16_t bits;
};
struct Halves {
  void (*widen)(const std::uint16_t* from, i64 count, float* to, Half kind);
  void (*narrow)(const float* from, i64 count, std::uint16_t* to, Half kind);
  void (*pair)(const std::uint16_t* first, const std::uint16_t* second, i64 count, float* to);
  void (*narrow_rows)(const float* from, i64 from_pitch, std::uint16_t* to, i64 to_pitch, i64 rows, i64 count);
  void (*turn)(const float* from, i64 from_pitch, std::uint16_t* to, i64 to_pitch, i64 as, i64 bs);
};

// A matrix unit: what a thread calls before and after products, and those of 16 or 32 positions and one or two vectors of lanes:
// sums[position * sums_step + lane] = bias[lane] + sum over t < taps and word < words of
// pixels[pixels_at[t] + position * pitch + word] * weights[weights_at[t] + word * lanes + lane]. Words are whole tiles.
constexpr int kTileSide = 16, kTallRows = 2 * kTileSide;
struct TileProducts {
  const float* pixels;
  i64 pitch;
  const float* weights;
  i64 taps;
  const i64 *pixels_at, *weights_at;
  i64 words;
  const float* bias;  // or null
  float* sums;
  i64 sums_step;
};
struct MatrixUnit {
  void (*begin)();
  void (*end)();
  void (*multiply[2][2])(const TileProducts& of);  // [whether 32 positions][whether two vectors]
};

template <class T>
struct Kernels {
  int lanes;                                                // elements of a vector
  Tile<T> tile[kMaxRows + 1][kMaxVecs + 1];                 // [R][V]; null where the accumulators would not fit the registers
  Gathered<T> gathered[kGatherVecs + 1][kMaxRows + 1];      // [V][R]; null likewise
  Stepped<T> stepped[kGatherVecs + 1][kMaxRows + 1];        // [V][R]; null likewise
  Correlated<T> correlated[kGatherVecs + 1][kMaxRows + 1];  // [V][R]; null likewise
  Outer<T> outer[kGatherVecs + 1][kMaxRows + 1];            // [V][R]; null likewise
  Weave<T> weave;
  Unweave<T> unweave;
  Transpose<T> transpose, transpose_past;  // the second past the caches: `to` and `to_pitch` are whole lines
  Copy<T> copy;
  CopyStretches<T> copy_stretches;
  DepthwiseRow<T> depthwise;
  DepthwiseGradRow<T> depthwise_grad;
  SumRows<T> sum_rows;
  Activate<T> activate;
  Transform<T> transform[kMaxTile + 1][kMaxFilter + 1];  // [m][r]; null where there is none
  Join<T> join_inputs, join_weights;
  Part<T> part;
  const Halves* half;
  MatrixUnit unit;  // or nulls
};

// The weights of a call: packed; or as they lie, for methods that pack what a task reads.
template <class T>
struct Weights {
  const T* packed = nullptr;
  View<const T> lie{};  // strides of (channel summed over, output of its group, d, h, w)
  i64 group_stride = 0;

  Weights(const T* in_order) : packed(in_order) {}
  Weights(const View<const T>& as_they_lie, i64 group) : lie(as_they_lie), group_stride(group) {}

  View<const T> of_group(i64 group) const {
    View<const T> found = lie;
    found.data += group * group_stride;
    return found;
  }
};

// A method's `run` for all that it sums in and writes.
#define TCONV_RUN(Plan, T, S) \
  template void run<T>(const Plan&, const Kernels<T>&, View<const T>, const Weights<T>&, const Epilogue<T>&, View<S>);
#define TCONV_RUNS(Plan)           \
  TCONV_RUN(Plan, float, float)    \
  TCONV_RUN(Plan, float, BFloat16) \
  TCONV_RUN(Plan, float, Float16)  \
  TCONV_RUN(Plan, double, double)

// Adjacent sums, rounded to what an array holds.
template <class S>
void narrow(const Kernels<float>& k, const float* from, i64 count, S* to) {
  k.half->narrow(from, count, &to->bits, S::kind);
}

// What products take for a number: itself, a pair of bfloat16 in one word, or such words in the tiles of a matrix unit.
enum class Term { numbers, pairs, pairs_in_tiles };

// One instruction set: its name, whether this processor runs it, and its tables. Where it has dot products of bfloat16, `dots` is the same
// with microkernels that take pairs of bfloat16 for words, and `matrix` with lanes over channels on a matrix unit; all that only moves
// words serves all.
struct Isa {
  const char* name;
  bool (*supported)();
  const Kernels<float>* f32;
  const Kernels<double>* f64;
  const Halves* half;
  Term term;
  double multiply;                     // cycles that two vectors of multiply-adds (of words) take
  bool quick_caches;                   // those of a core keep pace with its multiply-adds
  const Isa* (*dots)(), *(*matrix)();  // or null, as what they return

  template <class T>
  const Kernels<T>& kernels() const;
};

template <>
inline const Kernels<float>& Isa::kernels<float>() const {
  return *f32;
}
template <>
inline const Kernels<double>& Isa::kernels<double>() const {
  return *f64;
}

// Cycles that `ideal` ones of two multiply-adds each take: so many with loads and the like, which slower multiply-adds hide.
inline double products_take(double ideal, double with_loads, double multiply) {
  const double alone = 1.03 * multiply * ideal;
  return alone < with_loads ? with_loads : alone;
}

const Isa* isas(int* count);            // everything compiled in, best first
const Isa* find_isa(const char* name);  // null: no such name, or this processor lacks it

}  // namespace tconv
