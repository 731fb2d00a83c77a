// SPDX-License-Identifier: Apache-2.0
// The ways to compute a problem, by name.
#pragma once

namespace tconv {

// positions: lanes over output positions (plan.h). channels: lanes over output channels (gather.h). depthwise: lanes over the groups of
// depthwise layers (depthwise.h). rows: lanes along their rows (depthwise_rows.h). direct: the fastest of these. strassen: kernels that do
// not overlap, with fewer multiplications (strassen.h). rowwise: those that do, along one axis, over positions (row_points.h). winograd:
// over channels (winograd.h), with tiles that are estimated fastest, or with those of 2 or 4 positions. automatic: the fastest of all whose
// error stays small. The weight's gradient has one direct way, whatever its name.
enum class Method { automatic, direct, positions, channels, depthwise, rows, strassen, rowwise, winograd, winograd2, winograd4 };
constexpr const char* kMethods[] = {"auto",     "direct",  "positions", "channels",  "depthwise", "rows",
                                    "strassen", "rowwise", "winograd",  "winograd2", "winograd4"};
constexpr const char* name(Method m) { return kMethods[int(m)]; }
constexpr int tile_of(Method m) { return m == Method::winograd2 ? 2 : m == Method::winograd4 ? 4 : 0; }

// Terms of a sum that pay for Strassen's, without rounding more than the simplest direct sum does.
constexpr int kStrassenTerms = 256;

// Terms of a sum that transforms over positions, which round more and spread infinite numbers, are worth it for.
constexpr int kRowwiseTerms = 64;

// Channels enough to feed the products between Winograd's transforms.
constexpr int kWinogradChannels = 16;

}  // namespace tconv
