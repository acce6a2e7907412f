/* Convolution, 2x2 maximum and ReLU in one pass, forward and backward, for small networks.

   LANES images lie side by side in one vector, so every operation is a plain vector operation
   whatever the kernel's size, and a pruned synapse is simply not in the list that the innermost
   loop walks: its multiply-accumulates are not done. A tensor of n images is stored as
   [blocks][channels][height][width][LANES] with blocks = ceil(n / LANES).

   A vector is one register of the processor compiled for, and a tile's sums stay in registers:
   32 of them with AVX-512 and on ARM, 16 on other x86 processors.

   All sums run in one fixed order: the same input gives the same bits on the same processor. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined __AVX512F__
#define LANES 16
#define SUPPORTED __builtin_cpu_supports("avx512f")
#elif defined __AVX2__
#define LANES 8
#define SUPPORTED (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
#else
#define LANES 4
#define SUPPORTED 1
#endif
#if defined __AVX512F__ || defined __aarch64__
#define POOLED_COLUMNS 4
#else
#define POOLED_COLUMNS 3 /* 12 sums, a weight, a product */
#endif
/* A tile's sums are in registers only where its loops are unrolled. */
#if defined __clang__
#define UNROLL(most) _Pragma("clang loop unroll(full)")
#else
#define TEXT(pragma) _Pragma(#pragma)
#define UNROLL(most) TEXT(GCC unroll most)
#endif
#define INLINE static inline __attribute__((always_inline))
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4 * LANES)));

typedef struct { int64_t offset; float weight; int32_t other; } tap;
typedef struct { int blocks, in, height, width, out, kernel, pool, rows, columns; } shape;

/* Images in one vector; 0 where this processor is not one of those compiled for. */
int lanes(void) { return SUPPORTED ? LANES : 0; }

INLINE vec blend(ivec choose, vec yes, vec no) { return (vec)((choose & (ivec)yes) | (~choose & (ivec)no)); }

/* Sizes of the tiles that cut `left` as evenly as tiles of at most `most` can. */
INLINE int tile_of(int left, int most) { int n = (left + most - 1) / most; return (left + n - 1) / n; }

/* acc[r * C + c] = bias + sum over taps of weight * x[r * width + c + offset] */
INLINE void gather_tile(int R, int C, const vec *x, int width, const tap *t, int taps, float bias, vec *acc) {
  UNROLL(16)
  for (int i = 0; i < R * C; i++) acc[i] = (vec){0} + bias;
  for (int k = 0; k < taps; k++) {
    const vec *p = x + t[k].offset;
    float w = t[k].weight;
    UNROLL(3)
    for (int r = 0; r < R; r++)
      UNROLL(8)
      for (int c = 0; c < C; c++) acc[r * C + c] += w * p[r * width + c];
  }
}

INLINE void pooled_tile(int N, const vec *x, int width, const tap *t, int taps, float bias, vec *y, ivec *arg) {
  vec acc[2 * 2 * 4];
  gather_tile(2, 2 * N, x, width, t, taps, bias, acc);
  UNROLL(4)
  for (int n = 0; n < N; n++) {
    vec best = acc[2 * n];
    ivec where = {0};
    UNROLL(4)
    for (int q = 1; q < 4; q++) {
      vec a = acc[(q >> 1) * 2 * N + 2 * n + (q & 1)];
      ivec more = (a > best) | (a != a);
      best = blend(more, a, best);
      where = (more & q) | (~more & where);
    }
    ivec dead = best <= 0;
    y[n] = blend(dead, (vec){0}, best);
    if (arg) arg[n] = where | dead; /* -1 where nothing passes */
  }
}

INLINE void plain_tile(int R, int C, const vec *x, int width, const tap *t, int taps, float bias, vec *y, ivec *arg, int columns) {
  vec acc[9];
  gather_tile(R, C, x, width, t, taps, bias, acc);
  UNROLL(3)
  for (int r = 0; r < R; r++)
    UNROLL(3)
    for (int c = 0; c < C; c++) {
      ivec dead = acc[r * C + c] <= 0;
      y[r * columns + c] = blend(dead, (vec){0}, acc[r * C + c]);
      if (arg) arg[r * columns + c] = dead;
    }
}

/* The taps of each output channel with a weight that is not zero; returns how many there are. */
static int taps_forward(const shape *s, const float *weight, tap *t, int *from) {
  int count = 0;
  for (int o = 0; o < s->out; o++) {
    from[o] = count;
    for (int i = 0; i < s->in; i++)
      for (int ky = 0; ky < s->kernel; ky++)
        for (int kx = 0; kx < s->kernel; kx++, weight++)
          if (*weight != 0)
            t[count++] = (tap){((int64_t)i * s->height + ky) * s->width + kx, *weight, 0};
  }
  from[s->out] = count;
  return count;
}

/* x [blocks][in][height][width], weight [out][in][kernel][kernel], bias [out]
   -> y and arg [blocks][out][rows][columns]; rows and columns are those after pooling.
   arg may be null where no gradient is wanted. */
int convolution_forward(const shape *s, const vec *x, const float *weight, const float *bias, vec *y, ivec *arg) {
  size_t weights = (size_t)s->out * s->in * s->kernel * s->kernel;
  tap *t = malloc(weights * sizeof *t);
  int *from = malloc((s->out + 1) * sizeof *from);
  if (!t || !from) { free(t); free(from); return 1; }
  taps_forward(s, weight, t, from);
  for (int b = 0; b < s->blocks; b++, x += (size_t)s->in * s->height * s->width)
    for (int o = 0; o < s->out; o++) {
      const tap *own = t + from[o];
      int taps = from[o + 1] - from[o];
      if (s->pool)
        for (int r = 0; r < s->rows; r++)
          for (int c = 0, n; c < s->columns; c += n) {
            const vec *at = x + (size_t)2 * r * s->width + 2 * c;
            n = tile_of(s->columns - c, POOLED_COLUMNS);
#define POOLED(N) case N: pooled_tile(N, at, s->width, own, taps, bias[o], y, arg); break;
            switch (n) { POOLED(1) POOLED(2) POOLED(3) POOLED(4) }
            y += n;
            if (arg) arg += n;
          }
      else {
        for (int r = 0, m; r < s->rows; r += m) {
          m = tile_of(s->rows - r, 3);
          for (int c = 0, n; c < s->columns; c += n) {
            const vec *at = x + (size_t)r * s->width + c;
            vec *to = y + r * s->columns + c;
            ivec *a = arg ? arg + r * s->columns + c : 0;
            n = tile_of(s->columns - c, 3);
#define PLAIN(R, C) case 4 * R + C: plain_tile(R, C, at, s->width, own, taps, bias[o], to, a, s->columns); break;
            switch (4 * m + n) {
              PLAIN(1, 1) PLAIN(1, 2) PLAIN(1, 3) PLAIN(2, 1) PLAIN(2, 2) PLAIN(2, 3) PLAIN(3, 1) PLAIN(3, 2) PLAIN(3, 3)
            }
          }
        }
        y += s->rows * s->columns;
        if (arg) arg += s->rows * s->columns;
      }
    }
  free(t);
  free(from);
  return 0;
}

/* One block's gradient before pooling and ReLU, with a margin of kernel - 1 on the left and right. */
static void spread(const shape *s, const vec *gy, const ivec *arg, vec *g, int height, int stride) {
  int margin = s->kernel - 1;
  memset(g, 0, (size_t)s->out * height * stride * sizeof *g);
  for (int o = 0; o < s->out; o++)
    for (int r = 0; r < s->rows; r++)
      for (int c = 0; c < s->columns; c++, gy++, arg++) {
        if (s->pool)
          for (int q = 0; q < 4; q++)
            g[((size_t)o * height + 2 * r + (q >> 1)) * stride + margin + 2 * c + (q & 1)] = (vec)((*arg == q) & (ivec)*gy);
        else
          g[((size_t)o * height + r) * stride + margin + c] = (vec)(~*arg & (ivec)*gy);
      }
}

INLINE void correlate(int N, const vec *g, int stride, int rows, int columns, const vec *x, int width, const tap *t, vec *sums) {
  vec acc[8];
  UNROLL(8)
  for (int n = 0; n < N; n++) acc[n] = sums[n];
  for (int r = 0; r < rows; r++)
    for (int c = 0; c < columns; c++) {
      vec a = g[r * stride + c];
      const vec *p = x + r * width + c;
      UNROLL(8)
      for (int n = 0; n < N; n++) acc[n] += a * p[t[n].offset];
    }
  UNROLL(8)
  for (int n = 0; n < N; n++) sums[n] = acc[n];
}

/* to[c] = sum over taps of weight * g[c + offset], N columns */
INLINE void back_tile(int N, const vec *g, const tap *t, int taps, vec *to) {
  vec acc[8];
  gather_tile(1, N, g, 0, t, taps, 0, acc);
  UNROLL(8)
  for (int n = 0; n < N; n++) to[n] = acc[n];
}

/* gy [blocks][out][rows][columns] -> gw like weight, gb [out], gx like x (null where not wanted).
   keep (bytes, like weight; null: all) tells of which weights the gradient is wanted; others get 0. */
int convolution_backward(const shape *s, const vec *x, const float *weight, const uint8_t *keep,
                         const vec *gy, const ivec *arg, vec *gx, float *gw, float *gb) {
  int K = s->kernel, used_rows = s->rows << s->pool, used_columns = s->columns << s->pool;
  int height = used_rows, stride = used_columns + 2 * (K - 1);
  size_t weights = (size_t)s->out * s->in * K * K, each = (size_t)s->in * K * K;
  tap *own = malloc(weights * sizeof *own), *back = malloc(weights * sizeof *back);
  int *from = malloc((s->out + 1) * sizeof *from), *rows = malloc(((size_t)s->in * K + 1) * sizeof *rows);
  vec *g = aligned_alloc(sizeof(vec), (size_t)s->out * height * stride * sizeof *g);
  vec *sums = aligned_alloc(sizeof(vec), (weights + s->out) * sizeof *sums);
  int failed = !own || !back || !from || !rows || !g || !sums;
  if (!failed) {
    memset(sums, 0, (weights + s->out) * sizeof *sums);
    int count = 0;
    for (int o = 0; o < s->out; o++) {
      from[o] = count;
      for (int i = 0; i < s->in; i++)
        for (int ky = 0; ky < K; ky++)
          for (int kx = 0; kx < K; kx++) {
            size_t at = o * each + ((size_t)i * K + ky) * K + kx;
            if (!keep || keep[at])
              own[count++] = (tap){((int64_t)i * s->height + ky) * s->width + kx, 0, (int32_t)at};
          }
    }
    from[s->out] = count;
    count = 0;
    if (gx)
      for (int i = 0; i < s->in; i++)
        for (int ky = 0; ky < K; ky++) {
          rows[i * K + ky] = count;
          for (int o = 0; o < s->out; o++)
            for (int kx = 0; kx < K; kx++) {
              float w = weight[o * each + ((size_t)i * K + ky) * K + kx];
              if (w != 0) back[count++] = (tap){((int64_t)o * height - ky) * stride + K - 1 - kx, w, 0};
            }
        }
    rows[s->in * K] = count;
    size_t plane = (size_t)s->rows * s->columns * s->out;
    for (int b = 0; b < s->blocks; b++, x += (size_t)s->in * s->height * s->width, gy += plane, arg += plane) {
      spread(s, gy, arg, g, height, stride);
      for (int o = 0; o < s->out; o++) {
        const vec *go = g + (size_t)o * height * stride + K - 1;
        for (int r = 0; r < height; r++)
          for (int c = 0; c < used_columns; c++) sums[weights + o] += go[r * stride + c];
        for (int k = from[o], n; k < from[o + 1]; k += n) {
          n = tile_of(from[o + 1] - k, 8);
#define CORRELATE(N) case N: correlate(N, go, stride, used_rows, used_columns, x, s->width, own + k, sums + k); break;
          switch (n) {
            CORRELATE(1) CORRELATE(2) CORRELATE(3) CORRELATE(4) CORRELATE(5) CORRELATE(6) CORRELATE(7) CORRELATE(8)
          }
        }
      }
      if (gx)
        for (int i = 0; i < s->in; i++)
          for (int r = 0; r < s->height; r++) {
            int low = r - height + 1 > 0 ? r - height + 1 : 0, high = r < K - 1 ? r : K - 1;
            const tap *t = back;
            int taps = 0;
            if (low <= high) { t += rows[i * K + low]; taps = rows[i * K + high + 1] - rows[i * K + low]; }
            /* columns beyond what pooling looked at have no gradient */
            int reach = used_columns + K - 1;
            for (int c = 0, n; c < reach; c += n) {
              n = tile_of(reach - c, 8);
              const vec *at = g + (size_t)r * stride + c;
#define BACK(N) case N: back_tile(N, at, t, taps, gx + c); break;
              switch (n) { BACK(1) BACK(2) BACK(3) BACK(4) BACK(5) BACK(6) BACK(7) BACK(8) }
            }
            for (int c = reach; c < s->width; c++) gx[c] = (vec){0};
            gx += s->width;
          }
    }
    memset(gw, 0, weights * sizeof *gw);
    for (int k = 0; k < from[s->out]; k++) {
      float sum = 0;
      for (int l = 0; l < LANES; l++) sum += sums[k][l];
      gw[own[k].other] = sum;
    }
    for (int o = 0; o < s->out; o++) {
      gb[o] = 0;
      for (int l = 0; l < LANES; l++) gb[o] += sums[weights + o][l];
    }
  }
  free(own); free(back); free(from); free(rows); free(g); free(sums);
  return failed;
}

/* images [count][channels * pixels], contiguous -> [blocks][channels * pixels][LANES], zeros after the last image */
void pack(const float *images, int64_t count, int64_t size, float *to) {
  for (int64_t b = 0; b * LANES < count; b++, to += size * LANES) {
    const float *row[LANES];
    int64_t there = count - b * LANES < LANES ? count - b * LANES : LANES;
    for (int l = 0; l < LANES; l++) row[l] = images + (b * LANES + (l < there ? l : 0)) * size;
    for (int64_t i = 0; i < size; i++)
      for (int l = 0; l < LANES; l++) to[i * LANES + l] = row[l][i];
    for (int l = there; l < LANES; l++)
      for (int64_t i = 0; i < size; i++) to[i * LANES + l] = 0;
  }
}

/* One shifted, perhaps mirrored window of each picked image: padded [images][channels][tall][broad]
   -> to [count][channels][height][width] */
void windows(const float *padded, int64_t channels, int64_t tall, int64_t broad, const int64_t *picked, const int64_t *down,
             const int64_t *right, const uint8_t *mirrored, int64_t count, int64_t height, int64_t width, float *to) {
  for (int64_t n = 0; n < count; n++)
    for (int64_t c = 0; c < channels; c++)
      for (int64_t y = 0; y < height; y++, to += width) {
        const float *row = padded + ((picked[n] * channels + c) * tall + down[n] + y) * broad + right[n];
        if (mirrored && mirrored[n])
          for (int64_t x = 0; x < width; x++) to[x] = row[width - 1 - x];
        else
          memcpy(to, row, width * sizeof *to);
      }
}
