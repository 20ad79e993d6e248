/* Decodes the weights of a library that stores them compressed. Plain C99, no allocation; the format is described in
 * targets/tvm/storage/rans.py. A stream that is damaged is refused: nothing outside of source and target is touched.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { PRECISION = 12, SLOTS = 1 << PRECISION, MAX_LANES = 256, LOWEST_STATE = 1 << 16 };

struct stream {
    size_t source, source_bytes; /* in the stored weights */
    size_t target, target_bytes; /* in the decoded memory; a multiple of `width` */
    uint16_t width;              /* bytes of an element */
    uint16_t entries;            /* of the palette, which comes first; 0: one plane for each byte of an element */
};

struct frequencies {
    uint8_t symbol[SLOTS];
    uint16_t width[256], start[256];
    int last; /* symbol that occurs */
};

/* Each of these returns where the source goes on, or NULL if it is damaged. */

static const unsigned char *read_frequencies(const unsigned char *in, const unsigned char *end, struct frequencies *table)
{
    unsigned start = 0;
    if (end - in < 2)
        return NULL;
    int symbol = *in++;
    table->last = *in++;
    for (; symbol <= table->last; ++symbol) {
        if (in == end)
            return NULL;
        unsigned width = *in++;
        if (width > 127) {
            if (in == end)
                return NULL;
            width = (width - 128) << 8 | *in++;
        }
        if (width > SLOTS - start)
            return NULL;
        table->width[symbol] = (uint16_t)width;
        table->start[symbol] = (uint16_t)start;
        memset(table->symbol + start, symbol, width);
        start += width;
    }
    return start == SLOTS ? in : NULL;
}

/* Decode `count` symbols to out[0], out[stride] …; none is above `limit`. */
static const unsigned char *read_plane(const unsigned char *in, const unsigned char *end, unsigned char *out,
                                       size_t count, size_t stride, int limit)
{
    if (in == end)
        return NULL;
    unsigned kind = *in++;
    if (kind == 0) {
        if ((size_t)(end - in) < count)
            return NULL;
        for (size_t i = 0; i < count; ++i) {
            if (in[i] > limit)
                return NULL;
            out[i * stride] = in[i];
        }
        return in + count;
    }

    struct frequencies table;
    uint32_t states[MAX_LANES];
    if (kind > 9)
        return NULL;
    size_t lanes = (size_t)1 << (kind - 1);
    in = read_frequencies(in, end, &table);
    if (!in || table.last > limit || (size_t)(end - in) < 4 * lanes)
        return NULL;
    for (size_t lane = 0; lane < lanes; ++lane, in += 4)
        states[lane] = (uint32_t)in[0] | (uint32_t)in[1] << 8 | (uint32_t)in[2] << 16 | (uint32_t)in[3] << 24;
    for (size_t i = 0; i < count; ++i) {
        uint32_t *state = &states[i & (lanes - 1)];
        uint32_t slot = *state & (SLOTS - 1);
        unsigned symbol = table.symbol[slot];
        uint32_t x = table.width[symbol] * (*state >> PRECISION) + slot - table.start[symbol];
        if (x < LOWEST_STATE) {
            if (end - in < 2)
                return NULL;
            x = x << 16 | (uint32_t)in[0] | (uint32_t)in[1] << 8;
            in += 2;
        }
        *state = x;
        out[i * stride] = (unsigned char)symbol;
    }
    for (size_t lane = 0; lane < lanes; ++lane)
        if (states[lane] != LOWEST_STATE)
            return NULL;
    return in;
}

/* Decode one stream; 0, or 1 if it is damaged. */
static int decode_stream(const struct stream *stream, const unsigned char *stored, unsigned char *decoded)
{
    const unsigned char *in = stored + stream->source, *end = in + stream->source_bytes;
    unsigned char *out = decoded + stream->target;
    size_t width = stream->width, count = stream->target_bytes / width;
    if (stream->entries == 0) {
        for (size_t plane = 0; plane < width && in; ++plane)
            in = read_plane(in, end, out + plane, count, width, 255);
        return in != end;
    }
    const unsigned char *palette = in;
    if (stream->entries > 256 || stream->source_bytes < stream->entries * width)
        return 1;
    /* The indices go to the end of the target; each is read before its element, or one after it, is written there. */
    unsigned char *indices = out + count * (width - 1);
    if (read_plane(in + stream->entries * width, end, indices, count, 1, stream->entries - 1) != end)
        return 1;
    for (size_t i = 0; i < count; ++i)
        memcpy(out + i * width, palette + indices[i] * width, width);
    return 0;
}
