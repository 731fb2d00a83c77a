// SPDX-License-Identifier: Apache-2.0
// TensorFlow calls these with the memory of its tensors, without Python. Sizes come from the tensors, all else from attributes; the crop
// fixes the size of the output, and with it that of an input or a kernel that is asked for:
//
//   TconvConvTranspose        x, w         -> y       x, y (N, *size, C) or (N, C, *size), or without N; w (*k, Cout / groups, Cin)
//   TconvConvTransposeBias    x, w, bias   -> y
//   TconvGradInput            dy, w        -> dx
//   TconvGradWeight           x, dy        -> dw
//   TconvGradBias             dy           -> db
//
// As many threads compute as TensorFlow's setting for a single operator says, which a kernel reads once.
// An exception becomes TensorFlow's error.
#include "tensorflow.h"

#include <algorithm>
#include <atomic>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "problem.h"
#include "tensorflow_api.h"

#ifdef _WIN32

namespace tconv {
std::string find_tensorflow(const std::string&) { return "on Windows TensorFlow has no library that an operator could be added to"; }
}  // namespace tconv

#else

#include <dlfcn.h>

namespace tconv {
namespace {

constexpr std::uint64_t kMostThreads = 1024;

TensorFlow tf;
bool complete = false;  // whether all of it was found

// TensorFlow's own error, which goes back to it as it is.
struct Failure {
  int code;
  std::string message;
};

class Status {
 public:
  Status() : status_(tf.NewStatus()) {}
  ~Status() { tf.DeleteStatus(status_); }
  Status(const Status&) = delete;
  Status& operator=(const Status&) = delete;

  operator TF_Status*() { return status_; }
  void check() const {
    if (tf.GetCode(status_) != kOk) throw Failure{tf.GetCode(status_), tf.Message(status_)};
  }

 private:
  TF_Status* status_;
};

// Calls `fail` with the error that `body` ends in, if so.
template <class F, class G>
void guarded(F body, G fail) {
  Failure failure;
  try {
    return body();
  } catch (const Failure& error) {
    failure = error;
  } catch (const std::bad_alloc&) {
    failure = {kResourceExhausted, "tconv: not enough memory"};
  } catch (const std::invalid_argument& error) {
    failure = {kInvalidArgument, error.what()};
  } catch (const std::exception& error) {
    failure = {kInternal, error.what()};
  }
  Status status;
  tf.SetStatus(status, failure.code, failure.message.c_str());
  fail(status);
}

// An operand, or the result once it is allocated.
class Tensor {
 public:
  Tensor(TF_OpKernelContext* context, int index) {
    Status status;
    tf.GetInput(context, index, &tensor_, status);
    status.check();
    for (int i = 0; i < tf.NumDims(tensor_); ++i) shape_.push_back(tf.Dim(tensor_, i));
  }
  Tensor(TF_OpKernelContext* context, Sizes shape, bool is_double) : shape_(std::move(shape)) {
    std::size_t bytes = is_double ? sizeof(double) : sizeof(float);
    for (const i64 size : shape_) bytes *= std::size_t(size);
    Status status;
    tensor_ = tf.AllocateOutput(context, 0, is_double ? kDouble : kFloat, shape_.data(), int(shape_.size()), bytes, status);
    status.check();
  }
  ~Tensor() {
    if (tensor_) tf.DeleteTensor(tensor_);
  }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;

  const Sizes& shape() const { return shape_; }
  bool is_double() const { return tf.TensorType(tensor_) == kDouble; }
  Dense dense() const { return {tf.TensorData(tensor_), shape_}; }

 private:
  TF_Tensor* tensor_ = nullptr;
  Sizes shape_;
};

// intra_op_parallelism_threads of a serialised ConfigProto, which is its field 2; 0 where it is not set.
int intra_op_threads(const unsigned char* at, const unsigned char* end) {
  const auto varint = [&] {
    std::uint64_t value = 0;
    for (int shift = 0; at < end && shift < 64; shift += 7) {
      value |= std::uint64_t(*at & 127) << shift;
      if (*at++ < 128) break;
    }
    return value;
  };
  while (at < end) {
    const std::uint64_t key = varint(), kind = key & 7, value = kind == 0 || kind == 2 ? varint() : 0;
    if (key >> 3 == 2 && kind == 0) return int(std::min<std::uint64_t>(value, kMostThreads));
    const std::uint64_t skipped = kind == 1 ? 8 : kind == 5 ? 4 : kind == 2 ? value : 0;
    if (skipped > std::uint64_t(end - at)) break;
    at += skipped;
  }
  return 0;
}

// What a node says in its attributes, and how many threads its graph may use; found out in the first call, since only calls are told.
struct Kernel {
  Words words;
  std::atomic<int> threads{-1};  // 0: as many as calls from elsewhere

  int threads_in(TF_OpKernelContext* context) {
    if (threads < 0) {
      Status status;
      TF_Buffer* config = tf.NewBuffer();
      tf.GetSerializedConfigProto(context, config, status);
      const auto* from = static_cast<const unsigned char*>(config->data);
      threads = tf.GetCode(status) == kOk && from ? intra_op_threads(from, from + config->length) : 0;
      tf.DeleteBuffer(config);
    }
    const int asked = threads;
    return asked ? asked : default_threads();
  }
};

// Data that may lack the batch axis, with it.
Sizes batched(const Words& words, const Sizes& shape) {
  Sizes found = shape;
  if (int(shape.size()) == words.rank() + 1) found.insert(found.begin(), 1);
  return found;
}

// The shape of a result beside data of the shape `like`, without the batch axis where that lacks it.
Sizes like(const Sizes& like, Sizes found) {
  if (like.size() < found.size()) found.erase(found.begin());
  return found;
}

template <bool has_bias>
void forward(const Words& words, TF_OpKernelContext* context, int threads) {
  const Tensor x(context, 0), w(context, 1);
  const Sizes shape = batched(words, x.shape());
  const DenseProblem p(words, shape, w.shape());
  const Dense in{x.dense().data, shape};
  const auto compute = [&](const Dense* bias) {
    if (bias) check_bias(p, *bias);
    const Tensor y(context, like(x.shape(), p.output_shape()), x.is_double());
    conv_transpose(p, x.is_double(), in, w.dense(), bias, {y.dense().data, p.output_shape()}, threads);
  };
  if constexpr (has_bias) {
    const Tensor bias(context, 2);
    const Dense dense = bias.dense();
    compute(&dense);
  } else {
    compute(nullptr);
  }
}

void by_input(const Words& words, TF_OpKernelContext* context, int threads) {
  const Tensor dy(context, 0), w(context, 1);
  const Dense grad{dy.dense().data, batched(words, dy.shape())};
  const Sizes shape = input_shape(words, grad.shape, w.shape());
  const DenseProblem p(words, shape, w.shape());
  p.check_output(grad.shape);
  const Tensor dx(context, like(dy.shape(), shape), dy.is_double());
  grad_input(p, dy.is_double(), grad, w.dense(), {dx.dense().data, shape}, threads);
}

void by_weight(const Words& words, TF_OpKernelContext* context, int threads) {
  const Tensor x(context, 0), dy(context, 1);
  const Dense in{x.dense().data, batched(words, x.shape())}, grad{dy.dense().data, batched(words, dy.shape())};
  const Sizes shape = weight_shape(words, in.shape, grad.shape);
  const DenseProblem p(words, in.shape, shape);
  p.check_output(grad.shape);
  const Tensor dw(context, shape, x.is_double());
  grad_weight(p, x.is_double(), in, grad, dw.dense(), threads);
}

void by_bias(const Words& words, TF_OpKernelContext* context, int threads) {
  const Tensor dy(context, 0);
  const Dense grad{dy.dense().data, batched(words, dy.shape())};
  const i64 channels = output_channels(words, grad.shape);
  const Tensor db(context, {channels}, dy.is_double());
  grad_bias(words, dy.is_double(), grad, db.dense(), threads);
}

// ---------------------------------------------------------------------------------------------------- kernels and their registration

Sizes list(TF_OpKernelConstruction* context, const char* name) {
  Status status;
  std::int32_t size = 0, total = 0;
  tf.OpKernelConstruction_GetAttrSize(context, name, &size, &total, status);
  status.check();
  Sizes found(std::size_t(size), 0);
  tf.OpKernelConstruction_GetAttrInt64List(context, name, found.data(), size, status);
  status.check();
  return found;
}

void* create(TF_OpKernelConstruction* context) {
  Kernel* made = nullptr;
  const auto read = [&] {
    Status status;
    i64 groups = 0;
    unsigned char last = 0;
    tf.OpKernelConstruction_GetAttrInt64(context, "groups", &groups, status);
    status.check();
    tf.OpKernelConstruction_GetAttrBool(context, "channels_last", &last, status);
    status.check();
    Words words{list(context, "strides"), list(context, "dilations"), list(context, "crop"), groups, last != 0, {}, false};
    const int rank = words.rank();
    words.order = {rank + 1, rank};
    for (int i = 0; i < rank; ++i) words.order.push_back(i);
    words.check();
    made = new Kernel{std::move(words)};
  };
  guarded(read, [&](TF_Status* status) { tf.OpKernelConstruction_Failure(context, status); });
  return made;
}

void destroy(void* kernel) { delete static_cast<Kernel*>(kernel); }

template <void operation(const Words&, TF_OpKernelContext*, int threads)>
void compute(void* instance, TF_OpKernelContext* context) {
  auto& kernel = *static_cast<Kernel*>(instance);
  guarded([&] { operation(kernel.words, context, kernel.threads_in(context)); },
          [&](TF_Status* status) { tf.OpKernelContext_Failure(context, status); });
}

// The C API has no way to make a shape of numbers; Python sets it.
void unknown_shape(TF_ShapeInferenceContext* context, TF_Status* status) { tf.ShapeInferenceContextSetUnknownShape(context, status); }

void define(const char* name, const std::vector<const char*>& inputs, const char* output, void (*run)(void*, TF_OpKernelContext*)) {
  TF_OpDefinitionBuilder* op = tf.NewOpDefinitionBuilder(name);
  for (const char* input : inputs) tf.OpDefinitionBuilderAddInput(op, input);
  tf.OpDefinitionBuilderAddOutput(op, output);
  for (const char* attribute :
       {"T: {float, double}", "strides: list(int)", "dilations: list(int)", "crop: list(int)", "groups: int", "channels_last: bool"})
    tf.OpDefinitionBuilderAddAttr(op, attribute);
  tf.OpDefinitionBuilderSetShapeInferenceFunction(op, &unknown_shape);
  Status status;
  tf.RegisterOpDefinition(op, status);
  status.check();
  for (const int type : {kFloat, kDouble}) {
    TF_KernelBuilder* kernel = tf.NewKernelBuilder(name, "CPU", &create, run, &destroy);
    tf.KernelBuilder_TypeConstraint(kernel, "T", type, status);
    status.check();
    tf.RegisterKernelBuilder(name, kernel, status);
    status.check();
  }
}

}  // namespace

std::string find_tensorflow(const std::string& library) {
  void* handle = dlopen(library.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  if (!handle) return library + " is not loaded";
#define TCONV_FIND(result, name, parameters)                                    \
  tf.name = reinterpret_cast<result(*) parameters>(dlsym(handle, "TF_" #name)); \
  if (!tf.name) return "TensorFlow's library has no TF_" #name;
  TCONV_TENSORFLOW_API(TCONV_FIND)
#undef TCONV_FIND
  complete = true;
  return {};
}

}  // namespace tconv

extern "C" __attribute__((visibility("default"))) void tconv_register_tensorflow() {
  using namespace tconv;
  if (!complete) return;  // somebody else than _tensorflow_ops.py has loaded the library
  try {
    define("TconvConvTranspose", {"x: T", "w: T"}, "y: T", &compute<forward<false> >);
    define("TconvConvTransposeBias", {"x: T", "w: T", "bias: T"}, "y: T", &compute<forward<true> >);
    define("TconvGradInput", {"dy: T", "w: T"}, "dx: T", &compute<by_input>);
    define("TconvGradWeight", {"x: T", "dy: T"}, "dw: T", &compute<by_weight>);
    define("TconvGradBias", {"dy: T"}, "db: T", &compute<by_bias>);
  } catch (const Failure&) {
    // what is missing then is seen by the caller of tf.load_op_library
  }
}

#endif
