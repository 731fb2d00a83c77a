// SPDX-License-Identifier: Apache-2.0
// What is used of TensorFlow's C API, as tensorflow/c/{ops,kernels,tf_tensor,tf_status,tf_datatype}.h of TensorFlow 2.16 to 2.21 declare
// it. The functions are found when TensorFlow is there, so that neither its library nor its headers are needed to build.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {
struct TF_Status;
struct TF_Tensor;
struct TF_OpDefinitionBuilder;
struct TF_ShapeInferenceContext;
struct TF_KernelBuilder;
struct TF_OpKernelConstruction;
struct TF_OpKernelContext;
struct TF_Buffer {
  const void* data;
  std::size_t length;
  void (*data_deallocator)(void* data, std::size_t length);
};
}

namespace tconv {

enum : int { kOk = 0, kInvalidArgument = 3, kResourceExhausted = 8, kInternal = 13 };  // of TF_Code
enum : int { kFloat = 1, kDouble = 2 };                                                // of TF_DataType

// F(result, name without TF_, parameters)
#define TCONV_TENSORFLOW_API(F)                                                                                                     \
  F(TF_Status*, NewStatus, ())                                                                                                      \
  F(void, DeleteStatus, (TF_Status*))                                                                                               \
  F(void, SetStatus, (TF_Status*, int code, const char* message))                                                                   \
  F(int, GetCode, (const TF_Status*))                                                                                               \
  F(const char*, Message, (const TF_Status*))                                                                                       \
  F(int, TensorType, (const TF_Tensor*))                                                                                            \
  F(int, NumDims, (const TF_Tensor*))                                                                                               \
  F(std::int64_t, Dim, (const TF_Tensor*, int index))                                                                               \
  F(void*, TensorData, (const TF_Tensor*))                                                                                          \
  F(void, DeleteTensor, (TF_Tensor*))                                                                                               \
  F(TF_OpDefinitionBuilder*, NewOpDefinitionBuilder, (const char* name))                                                            \
  F(void, OpDefinitionBuilderAddAttr, (TF_OpDefinitionBuilder*, const char* spec))                                                  \
  F(void, OpDefinitionBuilderAddInput, (TF_OpDefinitionBuilder*, const char* spec))                                                 \
  F(void, OpDefinitionBuilderAddOutput, (TF_OpDefinitionBuilder*, const char* spec))                                                \
  F(void, OpDefinitionBuilderSetShapeInferenceFunction, (TF_OpDefinitionBuilder*, void (*)(TF_ShapeInferenceContext*, TF_Status*))) \
  F(void, ShapeInferenceContextSetUnknownShape, (TF_ShapeInferenceContext*, TF_Status*))                                            \
  F(void, RegisterOpDefinition, (TF_OpDefinitionBuilder*, TF_Status*))                                                              \
  F(TF_KernelBuilder*, NewKernelBuilder,                                                                                            \
    (const char* op, const char* device, void* (*create)(TF_OpKernelConstruction*), void (*compute)(void*, TF_OpKernelContext*),    \
     void (*destroy)(void*)))                                                                                                       \
  F(void, KernelBuilder_TypeConstraint, (TF_KernelBuilder*, const char* attribute, int type, TF_Status*))                           \
  F(void, RegisterKernelBuilder, (const char* name, TF_KernelBuilder*, TF_Status*))                                                 \
  F(void, OpKernelConstruction_GetAttrSize,                                                                                         \
    (TF_OpKernelConstruction*, const char* name, std::int32_t* list, std::int32_t* total, TF_Status*))                              \
  F(void, OpKernelConstruction_GetAttrInt64List, (TF_OpKernelConstruction*, const char* name, std::int64_t*, int size, TF_Status*)) \
  F(void, OpKernelConstruction_GetAttrInt64, (TF_OpKernelConstruction*, const char* name, std::int64_t*, TF_Status*))               \
  F(void, OpKernelConstruction_GetAttrBool, (TF_OpKernelConstruction*, const char* name, unsigned char*, TF_Status*))               \
  F(void, OpKernelConstruction_Failure, (TF_OpKernelConstruction*, TF_Status*))                                                     \
  F(void, GetInput, (TF_OpKernelContext*, int index, TF_Tensor**, TF_Status*))                                                      \
  F(TF_Tensor*, AllocateOutput,                                                                                                     \
    (TF_OpKernelContext*, int index, int type, const std::int64_t* dims, int axes, std::size_t bytes, TF_Status*))                  \
  F(TF_Buffer*, NewBuffer, ())                                                                                                      \
  F(void, DeleteBuffer, (TF_Buffer*))                                                                                               \
  F(void, GetSerializedConfigProto, (TF_OpKernelContext*, TF_Buffer*, TF_Status*))                                                  \
  F(void, OpKernelContext_Failure, (TF_OpKernelContext*, TF_Status*))

struct TensorFlow {
#define TCONV_MEMBER(result, name, parameters) result(*name) parameters;
  TCONV_TENSORFLOW_API(TCONV_MEMBER)
#undef TCONV_MEMBER
};

}  // namespace tconv
