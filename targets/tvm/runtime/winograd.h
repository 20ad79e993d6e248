/* Transforms the weights of 3x3 convolutions for F(4x4, 3x3): U = G w G', packed as targets/tvm/kernels/winograd.py says.
 * Plain C99, no allocation.
 */
#include <stddef.h>
#include <stdint.h>

struct winograd {
    int decoded;           /* whether the source lies in the decoded memory, and not in the stored weights */
    size_t source, target; /* float32 [filters, channels, 3, 3] and [36, panels, channels, panel] */
    size_t filters, channels, panel;
};

/* G w of three numbers. */
static void winograd_spread(double w0, double w1, double w2, double *out)
{
    const double even = w0 / 24 + w2 / 6, ends = -(w0 + w2) / 6;
    out[0] = w0 / 4;
    out[1] = ends - w1 / 6;
    out[2] = ends + w1 / 6;
    out[3] = even + w1 / 12;
    out[4] = even - w1 / 12;
    out[5] = w2;
}

static void transform_winograd(const struct winograd *of, const unsigned char *stored, unsigned char *memory)
{
    const float *from = (const float *)(const void *)((of->decoded ? memory : stored) + of->source);
    float *to = (float *)(void *)(memory + of->target);
    const size_t panels = (of->filters + of->panel - 1) / of->panel, place = panels * of->panel * of->channels;
    for (size_t o = 0; o < panels * of->panel; ++o)
        for (size_t c = 0; c < of->channels; ++c) {
            double half[3][6], row[6];
            float *out = to + (o / of->panel * of->channels + c) * of->panel + o % of->panel;
            if (o >= of->filters) {
                for (size_t p = 0; p < 36; ++p)
                    out[p * place] = 0;
                continue;
            }
            const float *w = from + (o * of->channels + c) * 9;
            for (size_t v = 0; v < 3; ++v)
                winograd_spread(w[v], w[3 + v], w[6 + v], half[v]);
            for (size_t p = 0; p < 6; ++p) {
                winograd_spread(half[0][p], half[1][p], half[2][p], row);
                for (size_t q = 0; q < 6; ++q)
                    out[(p * 6 + q) * place] = (float)row[q];
            }
        }
}
