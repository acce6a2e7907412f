/* The compiled convolution against a plain one in double precision: exits with 1 where they differ,
   with 77 on a processor without the instructions that were compiled for.

   Images, weights and gradients are small integers, so every sum is exact in single precision too:
   the results are the same number on every processor, and the comparison is for equality. */

#include "convolution.c"

#include <stdio.h>

static uint64_t state = 1;

/* A random integer from -most to most. */
static int any(int most) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (int)((state >> 33) % (2 * most + 1)) - most;
}

static void *filled(void *room, size_t size) {
  if (!room) exit(2);
  return memset(room, 0xff, size); /* NaN: what is not written shows */
}

static void *bytes(size_t size) { return filled(malloc(size), size); }
static void *vectors(size_t count) { return filled(aligned_alloc(sizeof(vec), count * sizeof(vec)), count * sizeof(vec)); }

static int differ(const char *what, const shape *s, int count, double found, double expected) {
  if (found == expected) return 0;
  printf("%s: %g, not %g (%d images of %d x %d x %d, %d convolutions of %d, pool %d)\n", what, found, expected, count,
         s->in, s->height, s->width, s->out, s->kernel, s->pool);
  return 1;
}

/* density: of the weights that are not pruned, in percent; with `all`, a pruned weight's gradient is wanted too. */
static int check(int count, int in, int height, int width, int out, int kernel, int pool, int density, int all) {
  int K = kernel, rows = (height - K + 1) >> pool, columns = (width - K + 1) >> pool;
  shape s = {(count + LANES - 1) / LANES, in, height, width, out, K, pool, rows, columns};
  size_t size = (size_t)in * height * width, after = (size_t)out * rows * columns, weights = (size_t)out * in * K * K;
  float *images = bytes(count * size * 4), *weight = bytes(weights * 4), *bias = bytes(out * 4);
  uint8_t *keep = bytes(weights);
  for (size_t i = 0; i < count * size; i++) images[i] = any(2);
  for (size_t i = 0; i < weights; i++) {
    keep[i] = any(50) + 50 < density;
    weight[i] = keep[i] ? any(2) : 0;
  }
  for (int o = 0; o < out; o++) bias[o] = any(3);

  vec *x = vectors(s.blocks * size), *gx = vectors(s.blocks * size);
  vec *y = vectors(s.blocks * after), *gy = vectors(s.blocks * after);
  vec *again = vectors(s.blocks * after);
  ivec *arg = vectors(s.blocks * after);
  float *gw = bytes(weights * 4), *gb = bytes(out * 4);
  pack(images, count, size, (float *)x);
  for (size_t i = 0; i < s.blocks * after; i++)
    for (int l = 0; l < LANES; l++) gy[i][l] = (int)(i / after) * LANES + l < count ? any(2) : 0;
  if (convolution_forward(&s, x, weight, bias, y, arg) || convolution_forward(&s, x, weight, bias, again, 0)) exit(2);
  if (convolution_backward(&s, x, weight, all ? 0 : keep, gy, arg, gx, gw, gb)) exit(2);

  int wrong = memcmp(y, again, s.blocks * after * sizeof(vec)) ? differ("without gradients", &s, count, 0, 1) : 0;
  double *to_weight = calloc(weights, sizeof(double)), *to_bias = calloc(out, sizeof(double));
  double *to_image = malloc(size * sizeof(double));
  if (!to_weight || !to_bias || !to_image) exit(2);
  for (int n = 0; n < count; n++) {
    const float *image = images + n * size;
    size_t block = n / LANES;
    int lane = n % LANES;
    memset(to_image, 0, size * sizeof(double));
    for (int o = 0; o < out; o++)
      for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) {
          double best = 0;
          int top = 0, left = 0;
          for (int q = 0; q < (pool ? 4 : 1); q++) {
            int v = (r << pool) + (q >> 1), u = (c << pool) + (q & 1);
            double sum = bias[o];
            for (int i = 0; i < in; i++)
              for (int ky = 0; ky < K; ky++)
                for (int kx = 0; kx < K; kx++)
                  sum += (double)weight[((o * in + i) * K + ky) * K + kx] * image[(i * height + v + ky) * width + u + kx];
            if (!q || sum > best) best = sum, top = v, left = u; /* the first of equal ones, as PyTorch takes it */
          }
          size_t at = block * after + ((size_t)o * rows + r) * columns + c;
          wrong += differ("value", &s, count, y[at][lane], best > 0 ? best : 0);
          if (best <= 0) continue;
          double g = gy[at][lane];
          to_bias[o] += g;
          for (int i = 0; i < in; i++)
            for (int ky = 0; ky < K; ky++)
              for (int kx = 0; kx < K; kx++) {
                size_t w = ((o * in + i) * K + ky) * K + kx, p = (i * height + top + ky) * width + left + kx;
                to_weight[w] += g * image[p];
                to_image[p] += g * weight[w];
              }
        }
    for (size_t p = 0; p < size; p++) wrong += differ("gradient of an image", &s, count, gx[block * size + p][lane], to_image[p]);
  }
  for (size_t w = 0; w < weights; w++)
    wrong += differ("gradient of a weight", &s, count, gw[w], all || keep[w] ? to_weight[w] : 0);
  for (int o = 0; o < out; o++) wrong += differ("gradient of a bias", &s, count, gb[o], to_bias[o]);
  void *made[] = {images, weight, bias, keep, x, gx, y, gy, again, arg, gw, gb, to_weight, to_bias, to_image};
  for (size_t i = 0; i < sizeof made / sizeof *made; i++) free(made[i]);
  return wrong;
}

int main(void) {
  if (!lanes()) {
    puts("this processor does not have the instructions that were compiled for");
    return 77;
  }
  int wrong = 0, counts[] = {1, LANES - 1, LANES, 2 * LANES + 1}, densities[] = {100, 30, 3, 0};
  for (int c = 0; c < 4; c++)
    for (int d = 0; d < 4; d++)
      for (int pool = 0; pool < 2; pool++)
        for (int all = 0; all < 2; all++) {
          wrong += check(counts[c], 1, 12, 12, 6, 5, pool, densities[d], all);
          wrong += check(counts[c], 3, 9, 14, 5, 3, pool, densities[d], all);
          wrong += check(counts[c], 2, 7, 6, 3, 4, pool, densities[d], all);
          wrong += check(counts[c], 4, 2, 3, 2, 1, pool, densities[d], all);
          wrong += check(counts[c], 2, 6, 6, 1, 5, pool, densities[d], all);
        }
  printf("%d lanes: %d differences\n", LANES, wrong);
  return wrong != 0;
}
