// SPDX-License-Identifier: Apache-2.0
// XLA calls these with the memory of its arrays, without Python: they read the arrays where they lie and write the result where it is
// wanted. Sizes come from the arrays; the words that arrays do not tell are attributes, each one or more 64-bit integers, and are those of
// `Words`: stride, dilation, crop, groups, last, order, flip.
//
// extern/xla/ffi/api/c_api.h is XLA's own header, unchanged. Only what has been in it since version 0.1 is used, so that is the version the
// handlers name, and any XLA that still takes it runs them.
#include "xla.h"

#include <xla/ffi/api/c_api.h>

#include <cstring>
#include <stdexcept>
#include <string>

#include "problem.h"

namespace tconv {
namespace {

constexpr int kMajor = 0, kMinor = 1;

Sizes attribute(const XLA_FFI_Attrs& attrs, const char* name) {
  for (i64 i = 0; i < attrs.size; ++i) {
    const XLA_FFI_ByteSpan& found = *attrs.names[i];
    if (found.len != std::strlen(name) || std::memcmp(found.ptr, name, found.len) != 0) continue;
    if (attrs.types[i] == XLA_FFI_AttrType_ARRAY) {
      const auto& array = *static_cast<const XLA_FFI_Array*>(attrs.attrs[i]);
      if (array.dtype == XLA_FFI_DataType_S64)
        return Sizes(static_cast<const i64*>(array.data), static_cast<const i64*>(array.data) + array.size);
    } else if (attrs.types[i] == XLA_FFI_AttrType_SCALAR) {
      const auto& scalar = *static_cast<const XLA_FFI_Scalar*>(attrs.attrs[i]);
      if (scalar.dtype == XLA_FFI_DataType_S64) return {*static_cast<const i64*>(scalar.value)};
    }
  }
  throw std::invalid_argument(std::string("tconv._core: no attribute of 64-bit integers named ") + name);
}

// The arrays of a call, arguments before results, all of one dtype.
class Arrays {
 public:
  Arrays(const XLA_FFI_CallFrame& frame, std::size_t fewest, std::size_t most) {
    for (i64 i = 0; i < frame.args.size; ++i) all_.push_back(static_cast<const XLA_FFI_Buffer*>(frame.args.args[i]));
    for (i64 i = 0; i < frame.rets.size; ++i) all_.push_back(static_cast<const XLA_FFI_Buffer*>(frame.rets.rets[i]));
    require(frame.rets.size == 1 && fewest <= all_.size() && all_.size() <= most, "wrong number of arrays");
    for (const XLA_FFI_Buffer* a : all_) require(a->dtype == all_[0]->dtype, "the arrays differ in dtype");
    require(all_[0]->dtype == XLA_FFI_DataType_F32 || all_[0]->dtype == XLA_FFI_DataType_F64, "neither float32 nor float64");
  }
  bool is_double() const { return all_[0]->dtype == XLA_FFI_DataType_F64; }
  std::size_t size() const { return all_.size(); }
  Dense operator[](std::size_t i) const { return {all_[i]->data, Sizes(all_[i]->dims, all_[i]->dims + all_[i]->rank)}; }
  Dense result() const { return (*this)[all_.size() - 1]; }

 private:
  std::vector<const XLA_FFI_Buffer*> all_;
};

Words words(const XLA_FFI_Attrs& attrs) {
  const auto one = [&](const char* name) {
    const Sizes found = attribute(attrs, name);
    require(found.size() == 1, name, ": must be one number");
    return found[0];
  };
  const Words found{attribute(attrs, "stride"), attribute(attrs, "dilation"), attribute(attrs, "crop"), one("groups"),
                    one("last") != 0,           attribute(attrs, "order"),    one("flip") != 0};
  found.check();
  return found;
}

// Arguments x, w and perhaps bias.
void forward(const XLA_FFI_CallFrame& frame) {
  const Arrays arrays(frame, 3, 4);
  const Words said = words(frame.attrs);
  const Dense x = arrays[0], w = arrays[1], y = arrays.result();
  const DenseProblem p(said, x.shape, w.shape);
  if (arrays.size() == 3) return conv_transpose(p, arrays.is_double(), x, w, nullptr, y, default_threads());
  const Dense bias = arrays[2];
  conv_transpose(p, arrays.is_double(), x, w, &bias, y, default_threads());
}

// Arguments the gradient by y, and w.
void by_input(const XLA_FFI_CallFrame& frame) {
  const Arrays arrays(frame, 3, 3);
  const Words said = words(frame.attrs);
  const Dense dy = arrays[0], w = arrays[1], dx = arrays.result();
  grad_input(DenseProblem(said, dx.shape, w.shape), arrays.is_double(), dy, w, dx, default_threads());
}

// Arguments x, and the gradient by y.
void by_weight(const XLA_FFI_CallFrame& frame) {
  const Arrays arrays(frame, 3, 3);
  const Words said = words(frame.attrs);
  const Dense x = arrays[0], dy = arrays[1], dw = arrays.result();
  grad_weight(DenseProblem(said, x.shape, dw.shape), arrays.is_double(), x, dy, dw, default_threads());
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

}  // namespace tconv
