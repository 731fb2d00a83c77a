// SPDX-License-Identifier: Apache-2.0
// Our pool beside OpenMP: a loop of short tasks on two threads, after a gap in which the caller is busy elsewhere. The table in
// docs/design.md. Build and run:
//   cmake -S . -B build/check -DTCONV_CHECK=ON && cmake --build build/check --target threads && build/check/threads
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "../src/core/parallel.h"

namespace {

double now() { return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void work(double us) {
  for (const double start = now(); now() - start < us;) continue;
}

template <class F>
double median(F loop, double gap) {
  std::vector<double> times(gap > 1000 ? 61 : 501);
  for (double& t : times) {
    work(gap);
    const double start = now();
    loop();
    t = now() - start;
  }
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

}  // namespace

int main() {
  for (const double us : {10.0, 50.0})
    for (const double gap : {0.0, 100.0, 1000.0, 10000.0}) {
      const double pool = median([&] { tconv::parallel_for(8, 2, [&](tconv::i64) { work(us); }); }, gap);
      const double openmp = median(
          [&] {
#pragma omp parallel for num_threads(2) schedule(dynamic, 1)
            for (int i = 0; i < 8; ++i) work(us);
          },
          gap);
      std::printf("8 tasks of %.0f us, gap %5.0f us: ideal %3.0f, pool %5.0f, OpenMP %5.0f us\n", us, gap, 4 * us, pool, openmp);
    }
}
