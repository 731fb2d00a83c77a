// SPDX-License-Identifier: Apache-2.0
// XLA calls these with the memory of its arrays, without Python: they read the arrays where they lie and write the result where it is
// wanted. Sizes come from the arrays; the words that arrays do not tell are attributes, each one or more 64-bit integers:
//
//   stride, dilation  one per spatial axis                last   1 where the channels are the last axis of data, 0 where they are the
//   second crop              lo and hi per spatial axis          order  the axes of the weight that hold Cin, Cout / groups and each
//   spatial axis groups                                                flip   1 where the kernel lies reversed
//
// extern/xla/ffi/api/c_api.h is XLA's own header, unchanged. Only what has been in it since version 0.1 is used, so that is the version the
// handlers name, and any XLA that still takes it runs them.
#include "xla.h"

#include <xla/ffi/api/c_api.h>

#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>

#include "../core/grad_weight.h"
#include "../core/layer.h"
#include "../core/parallel.h"

namespace tconv {
namespace {

constexpr int kMajor = 0, kMinor = 1;
constexpr std::size_t kLayers = 512;  // that are kept

std::atomic<int> threads_wanted{1};

void require(bool ok, const char* rule) {
  if (!ok) throw std::invalid_argument(std::string("tconv: ") + rule);
}

struct Ints {
  const i64* data;
  i64 size;

  i64 operator[](i64 i) const {
    require(i < size, "an attribute has too few numbers");
    return data[i];
  }
};

Ints attribute(const XLA_FFI_Attrs& attrs, const char* name) {
  for (i64 i = 0; i < attrs.size; ++i) {
    const XLA_FFI_ByteSpan& found = *attrs.names[i];
    if (found.len != std::strlen(name) || std::memcmp(found.ptr, name, found.len) != 0) continue;
    if (attrs.types[i] == XLA_FFI_AttrType_ARRAY) {
      const auto& array = *static_cast<const XLA_FFI_Array*>(attrs.attrs[i]);
      if (array.dtype == XLA_FFI_DataType_S64) return {static_cast<const i64*>(array.data), i64(array.size)};
    } else if (attrs.types[i] == XLA_FFI_AttrType_SCALAR) {
      const auto& scalar = *static_cast<const XLA_FFI_Scalar*>(attrs.attrs[i]);
      if (scalar.dtype == XLA_FFI_DataType_S64) return {static_cast<const i64*>(scalar.value), 1};
    }
  }
  throw std::invalid_argument(std::string("tconv: no attribute of 64-bit integers named ") + name);
}

// The arrays of a call, arguments before results, all of one dtype.
struct Arrays {
  std::vector<const XLA_FFI_Buffer*> all;

  Arrays(const XLA_FFI_CallFrame& frame, std::size_t fewest, std::size_t most) {
    for (i64 i = 0; i < frame.args.size; ++i) all.push_back(static_cast<const XLA_FFI_Buffer*>(frame.args.args[i]));
    for (i64 i = 0; i < frame.rets.size; ++i) all.push_back(static_cast<const XLA_FFI_Buffer*>(frame.rets.rets[i]));
    require(frame.rets.size == 1 && fewest <= all.size() && all.size() <= most, "wrong number of arrays");
    for (const XLA_FFI_Buffer* a : all) require(a->dtype == all[0]->dtype, "the arrays differ in dtype");
    require(all[0]->dtype == XLA_FFI_DataType_F32 || all[0]->dtype == XLA_FFI_DataType_F64, "neither float32 nor float64");
  }
  bool is_double() const { return all[0]->dtype == XLA_FFI_DataType_F64; }
};

// The problem that input, weight and output have in common, and the strides of each.
class Problem {
 public:
  Spec spec;
  bool last;

  Problem(const XLA_FFI_Attrs& attrs, const XLA_FFI_Buffer& x, const XLA_FFI_Buffer& w, const XLA_FFI_Buffer& y)
      : last(attribute(attrs, "last")[0]), flip_(attribute(attrs, "flip")[0]), order_(attribute(attrs, "order")) {
    const Ints stride = attribute(attrs, "stride"), dilation = attribute(attrs, "dilation"), crop = attribute(attrs, "crop");
    rank_ = int(stride.size);
    require(rank_ >= 1 && rank_ <= 3 && x.rank == rank_ + 2 && w.rank == x.rank && y.rank == x.rank, "wrong number of axes");
    for (i64 i = 0; i < w.rank; ++i) require(order_[i] >= 0 && order_[i] < w.rank, "order names an axis that the weight lacks");
    spec.groups = attribute(attrs, "groups")[0];
    spec.batch = x.dims[0], spec.in_channels = x.dims[channels()], spec.out_channels = y.dims[channels()];
    require(spec.groups >= 1 && spec.in_channels >= 1 && spec.in_channels % spec.groups == 0, "groups do not divide the channels");
    require(y.dims[0] == spec.batch && w.dims[order_[0]] == spec.in_channels && w.dims[order_[1]] * spec.groups == spec.out_channels,
            "the shapes do not fit");
    for (int i = 0; i < rank_; ++i) {
      Axis& a = spec.axis[3 - rank_ + i];
      a = {x.dims[spatial(i)], w.dims[order_[2 + i]], stride[i], dilation[i], crop[2 * i], crop[2 * i + 1]};
      require(a.size >= 1 && a.kernel >= 1 && a.stride >= 1 && a.dilation >= 1, "sizes, strides and dilations must be at least 1");
      require(a.output() == y.dims[spatial(i)], "the sizes do not fit");
    }
  }

  template <class T>
  View<T> data(const XLA_FFI_Buffer& a) const {
    const std::vector<i64> dense = strides(a);
    View<T> view{static_cast<T*>(a.data), {dense[0], dense[channels()], 0, 0, 0}};
    for (int i = 0; i < rank_; ++i) view.stride[5 - rank_ + i] = dense[spatial(i)];
    return view;
  }

  template <class T>
  View<T> weight(const XLA_FFI_Buffer& a) const {
    const std::vector<i64> dense = strides(a);
    View<T> view{static_cast<T*>(a.data), {dense[order_[0]], dense[order_[1]], 0, 0, 0}};
    for (int i = 0; i < rank_; ++i) {
      const i64 along = dense[order_[2 + i]];
      view.stride[5 - rank_ + i] = flip_ ? -along : along;
      if (flip_) view.data += (a.dims[order_[2 + i]] - 1) * along;
    }
    return view;
  }

 private:
  bool flip_;
  Ints order_;
  int rank_;

  int channels() const { return last ? rank_ + 1 : 1; }
  int spatial(int i) const { return (last ? 1 : 2) + i; }
  static std::vector<i64> strides(const XLA_FFI_Buffer& a) {
    std::vector<i64> found(std::size_t(a.rank), 1);
    for (i64 i = a.rank - 1; i > 0; --i) found[i - 1] = found[i] * a.dims[i];
    return found;
  }
};

const Isa& best_isa() {
  int count;
  const Isa* list = isas(&count);
  while (!list->supported()) ++list;  // the scalar one always is
  return *list;
}

// The prepared layer of a problem: planning takes longer than a small layer.
std::shared_ptr<const Layer> layer_of(const Problem& p, Direction direction, bool is_double) {
  static auto& mutex = *new std::mutex;  // both outlive the threads of XLA, which may be at work when the process ends
  static auto& kept = *new std::map<std::vector<i64>, std::shared_ptr<const Layer>>;
  const int threads = threads_wanted;
  const Spec& s = p.spec;
  std::vector<i64> key{i64(direction), is_double, p.last, threads, s.batch, s.in_channels, s.out_channels, s.groups};
  for (const Axis& a : s.axis) key.insert(key.end(), {a.size, a.kernel, a.stride, a.dilation, a.lo, a.hi});
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (const auto found = kept.find(key); found != kept.end()) return found->second;
  }
  const Use use{true, p.last};
  auto made = std::make_shared<const Layer>(s, direction, best_isa(), Method::automatic, threads, is_double ? 8 : 4, use);
  const std::lock_guard<std::mutex> lock(mutex);
  if (kept.size() >= kLayers) kept.clear();
  return kept[key] = std::move(made);
}

template <class T>
void run(const Problem& p, Direction direction, const XLA_FFI_Buffer& in, const XLA_FFI_Buffer& w, const XLA_FFI_Buffer* bias,
         const XLA_FFI_Buffer& out) {
  if (p.spec.batch == 0) return;
  const auto layer = layer_of(p, direction, sizeof(T) == 8);
  Epilogue<T> after;
  if (bias) {
    require(bias->rank == 1 && bias->dims[0] == p.spec.out_channels, "bias: one value per output channel");
    after.bias = static_cast<const T*>(bias->data);
  }
  T* packed = scratch<T>(3, layer->weight_elements());
  layer->pack<T>(p.weight<const T>(w), packed);
  layer->run<T>(p.data<const T>(in), packed, after, p.data<T>(out));
}

// Arguments x, w and perhaps bias.
void forward(const XLA_FFI_CallFrame& frame) {
  const Arrays arrays(frame, 3, 4);
  const auto &x = *arrays.all[0], &w = *arrays.all[1], &y = *arrays.all.back();
  const XLA_FFI_Buffer* bias = arrays.all.size() == 4 ? arrays.all[2] : nullptr;
  const Problem p(frame.attrs, x, w, y);
  arrays.is_double() ? run<double>(p, Direction::forward, x, w, bias, y) : run<float>(p, Direction::forward, x, w, bias, y);
}

// Arguments the gradient by y, and w.
void by_input(const XLA_FFI_CallFrame& frame) {
  const Arrays arrays(frame, 3, 3);
  const auto &dy = *arrays.all[0], &w = *arrays.all[1], &dx = *arrays.all[2];
  const Problem p(frame.attrs, dx, w, dy);
  arrays.is_double() ? run<double>(p, Direction::grad_input, dy, w, nullptr, dx) : run<float>(p, Direction::grad_input, dy, w, nullptr, dx);
}

// Arguments x, and the gradient by y.
void by_weight(const XLA_FFI_CallFrame& frame) {
  const Arrays arrays(frame, 3, 3);
  const auto &x = *arrays.all[0], &dy = *arrays.all[1], &dw = *arrays.all[2];
  const Problem p(frame.attrs, x, dw, dy);
  const int threads = threads_wanted;
  arrays.is_double()
      ? grad_weight<double>(p.spec, best_isa(), p.data<const double>(x), p.data<const double>(dy), p.weight<double>(dw), threads)
      : grad_weight<float>(p.spec, best_isa(), p.data<const float>(x), p.data<const float>(dy), p.weight<float>(dw), threads);
}

// Answers XLA's question for the version, or computes; an exception becomes XLA's error.
template <void compute(const XLA_FFI_CallFrame&)>
XLA_FFI_Error* handler(XLA_FFI_CallFrame* frame) {
  if (frame->extension_start && frame->extension_start->type == XLA_FFI_Extension_Metadata) {
    XLA_FFI_Metadata& asked = *reinterpret_cast<XLA_FFI_Metadata_Extension*>(frame->extension_start)->metadata;
    asked.api_version.major_version = kMajor, asked.api_version.minor_version = kMinor;
    asked.traits = 0;
    return nullptr;
  }
  std::string message;
  try {
    compute(*frame);
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
  }
  XLA_FFI_Error_Create_Args args{XLA_FFI_Error_Create_Args_STRUCT_SIZE, nullptr, message.c_str(), XLA_FFI_Error_Code_INVALID_ARGUMENT};
  return frame->api->XLA_FFI_Error_Create(&args);
}

}  // namespace

const std::vector<std::pair<const char*, void*>>& xla_handlers() {
  static const std::vector<std::pair<const char*, void*>> all{
      {"tconv_conv_transpose", reinterpret_cast<void*>(&handler<forward>)},
      {"tconv_grad_input", reinterpret_cast<void*>(&handler<by_input>)},
      {"tconv_grad_weight", reinterpret_cast<void*>(&handler<by_weight>)},
  };
  return all;
}

void set_xla_threads(int threads) { threads_wanted = threads > 1 ? threads : 1; }

}  // namespace tconv
