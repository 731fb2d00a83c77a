// SPDX-License-Identifier: Apache-2.0
// A layer of half precision, over dense arrays. Sums are float32 always, and rounded once.
//
// Where the processor multiplies bfloat16 (vdpbf16ps), neighbouring channels are one word, and the direct methods run as they are on half
// the channels: word[pair] = (channel 2 pair, channel 2 pair + 1), with a zero where a group's channels are odd. Adjacent channels of an
// even number are such words already. Elsewhere, and where another method is faster all the same, float32 is computed.
#pragma once

#include "layer.h"

namespace tconv {

class HalfLayer {
 public:
  // Throws as Layer does.
  HalfLayer(const Spec& spec, Direction direction, const Isa& isa, Method method, int threads, Use use, Half kind);

  const Layer& layer() const { return choice_.layer; }

  // Weight (Cin, Cout / groups, d, h, w).
  void pack(const std::uint16_t* weight, float* packed) const;
  // Arrays of the layer's format; bias and sums in float32.
  void run(const std::uint16_t* in, const float* packed, const Epilogue<float>& epilogue, std::uint16_t* out) const;

 private:
  struct Choice {
    Layer layer;
    Spec spec;  // what it computes
    bool paired;
  };
  // Elements (outer, channels, inner), of which the channels are summed over.
  struct Summed {
    i64 outer, channels, inner;
  };
  static Choice choose(const Spec& spec, Direction direction, const Isa& isa, Method method, int threads, Use use, Half kind);
  static Choice choose_images(Spec spec, Direction direction, const Isa& isa, Method method, int threads, Use use, Half kind);
  std::unique_ptr<float[]> words(const std::uint16_t* from, const Summed& shape) const;

  Choice choice_;  // of some images at a time
  Direction direction_;
  const Isa& isa_;
  Half kind_;
  bool last_;
  int threads_;
  i64 rounds_;  // until all images are through
  Summed input_, weight_;
};

}  // namespace tconv
