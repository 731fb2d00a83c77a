// SPDX-License-Identifier: Apache-2.0
#include "half_layer.h"

#include <optional>

#include "half.h"

namespace tconv {
namespace {

// Cycles an element takes on its way to words.
constexpr double kWiden = 0.5, kPair = 0.25;
// Of the words of the images that are computed at a time, about: they stay in a cache, and their memory is not new in every call.
constexpr i64 kWordsBytes = 8 << 20;
// From so many bytes on the words even of one image are new memory in every call (glibc's malloc), whose pages take cycles a word.
constexpr double kNewBytes = 32 << 20, kNewWord = 5;

i64& summed_channels(Spec& s, Direction direction) { return direction == Direction::forward ? s.in_channels : s.out_channels; }

i64 positions(const Spec& s, bool output) {
  i64 n = 1;
  for (const Axis& a : s.axis) n *= output ? a.output() : a.size;
  return n;
}

i64 taps(const Spec& s) { return s.axis[0].kernel * s.axis[1].kernel * s.axis[2].kernel; }

// The same layer of pairs of channels.
Spec in_pairs(Spec spec, Direction direction) {
  i64& channels = summed_channels(spec, direction);
  channels = spec.groups * ceil_div(channels / spec.groups, 2);
  return spec;
}

template <class T>
View<T> dense(T* data, const Spec& s, bool output, bool last) {
  i64 size[3];
  for (int i = 0; i < 3; ++i) size[i] = output ? s.axis[i].output() : s.axis[i].size;
  const i64 channels = output ? s.out_channels : s.in_channels, image = channels * size[0] * size[1] * size[2], pixel = last ? channels : 1;
  return {data, {image, last ? 1 : image / channels, size[1] * size[2] * pixel, size[2] * pixel, pixel}};
}

template <class T>
View<T> dense_weight(T* data, const Spec& s) {
  const i64 kh = s.axis[1].kernel, kw = s.axis[2].kernel;
  return {data, {s.out_channels / s.groups * taps(s), taps(s), kh * kw, kw, 1}};
}

}  // namespace

HalfLayer::Choice HalfLayer::choose(const Spec& spec, Direction direction, const Isa& isa, Method method, int threads, Use use, Half kind) {
  std::optional<Choice> best(Choice{Layer(spec, direction, isa, method, threads, 4, use), spec, false});
  Spec of = spec;
  const i64 channels = summed_channels(of, direction);
  if (kind != Half::bfloat16 || channels == spec.groups || method >= Method::depthwise) return std::move(*best);
  of = in_pairs(spec, direction);
  const double elements = double(spec.batch * channels) * double(positions(spec, direction == Direction::grad_input));
  const bool adjacent = use.channels_last && channels / spec.groups % 2 == 0;
  const auto made = [&](double words) { return words * 4 >= kNewBytes * double(spec.batch) ? kNewWord * words : 0; };
  double fewest = best->layer.cycles + kWiden * elements + made(elements);
  for (const auto find : {isa.dots, isa.matrix}) {
    const Isa* words = find ? find() : nullptr;
    if (!words || (words->term == Term::pairs_in_tiles && method == Method::positions)) continue;
    Layer pairs(of, direction, *words, method, threads, 4, use);
    const double cycles = pairs.cycles + (adjacent ? 0 : kPair * elements + made(elements / 2));
    if (cycles < fewest) fewest = cycles, best.emplace(Choice{std::move(pairs), of, true});
  }
  return std::move(*best);
}

// As many images at a time as have few words, and leave none over; all of them where their words are read where they lie.
HalfLayer::Choice HalfLayer::choose_images(Spec spec, Direction direction, const Isa& isa, Method method, int threads, Use use, Half kind) {
  Choice all = choose(spec, direction, isa, method, threads, use, kind);
  const i64 channels = summed_channels(spec, direction) / spec.groups, words = all.paired ? ceil_div(channels, 2) : channels;
  if (all.paired && use.channels_last && channels % 2 == 0) return all;
  const i64 image = spec.groups * words * positions(spec, direction == Direction::grad_input) * 4;
  const i64 most = std::max<i64>(1, kWordsBytes / std::max<i64>(1, image));
  if (spec.batch <= most) return all;
  i64 rounds = ceil_div(spec.batch, most);
  while (spec.batch % rounds) ++rounds;
  spec.batch /= rounds;
  return choose(spec, direction, isa, method, threads, use, kind);
}

HalfLayer::HalfLayer(const Spec& whole, Direction direction, const Isa& isa, Method method, int threads, Use use, Half kind)
    : choice_(choose_images(whole, direction, isa, method, threads, use, kind)),
      direction_(direction),
      isa_(isa),
      kind_(kind),
      last_(use.channels_last),
      threads_(threads),
      rounds_(choice_.spec.batch ? whole.batch / choice_.spec.batch : 0) {
  Spec spec = whole;
  spec.batch = choice_.spec.batch;
  const bool forward = direction == Direction::forward;
  const i64 pixels = positions(spec, !forward), outputs = spec.out_channels / spec.groups;
  const i64 channels = (forward ? spec.in_channels : spec.out_channels) / spec.groups, images = spec.batch * spec.groups;
  input_ = last_ ? Summed{images * pixels, channels, 1} : Summed{images, channels, pixels};
  weight_ = forward ? Summed{spec.groups, channels, outputs * taps(spec)} : Summed{spec.in_channels, channels, taps(spec)};
}

std::unique_ptr<float[]> HalfLayer::words(const std::uint16_t* from, const Summed& s) const {
  const i64 channels = choice_.paired ? ceil_div(s.channels, 2) : s.channels;
  std::unique_ptr<float[]> to(new float[std::size_t(s.outer * channels * s.inner)]);
  if (choice_.paired)
    pair(isa_, from, s.outer, s.channels, s.inner, to.get(), threads_);
  else
    widen(isa_, kind_, from, s.outer * s.channels * s.inner, to.get(), threads_);
  return to;
}

void HalfLayer::pack(const std::uint16_t* weight, float* packed) const {
  const std::unique_ptr<float[]> from = words(weight, weight_);
  layer().pack<float>(dense_weight<const float>(from.get(), choice_.spec), packed);
}

void HalfLayer::run(const std::uint16_t* in, const float* packed, const Epilogue<float>& epilogue, std::uint16_t* out) const {
  const bool forward = direction_ == Direction::forward;
  const Spec& s = choice_.spec;
  // Adjacent pairs are read where they lie.
  const bool lie = choice_.paired && input_.inner == 1 && input_.channels % 2 == 0 && reinterpret_cast<std::uintptr_t>(in) % 4 == 0;
  const i64 read = input_.outer * input_.channels * input_.inner;
  const i64 written = s.batch * (forward ? s.out_channels : s.in_channels) * positions(s, forward);
  for (i64 round = 0; round < rounds_; ++round, in += read, out += written) {
    const std::unique_ptr<float[]> copy = lie ? nullptr : words(in, input_);
    const float* from = lie ? reinterpret_cast<const float*>(in) : copy.get();
    const auto write = [&](auto* to) {
      layer().run<float>(dense(from, s, !forward, last_), packed, epilogue, dense(to, s, forward, last_));
    };
    kind_ == Half::bfloat16 ? write(reinterpret_cast<BFloat16*>(out)) : write(reinterpret_cast<Float16*>(out));
  }
}

}  // namespace tconv
