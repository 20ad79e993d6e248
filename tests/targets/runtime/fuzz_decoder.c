/* Decodes records of a file, each in buffers of exactly its size: source bytes, target bytes, width, entries (4 bytes
 * each, little endian), source. Prints how many were decoded and refused. Run under sanitizers.
 */
#include "decode.h"

#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    int counts[2] = {0, 0};
    uint32_t fields[4];
    FILE *file = argc == 2 ? fopen(argv[1], "rb") : NULL;
    if (!file)
        return 1;
    while (fread(fields, sizeof *fields, 4, file) == 4) {
        unsigned char *source = malloc(fields[0]), *target = malloc(fields[1]);
        if ((fields[0] && !source) || (fields[1] && !target) || fread(source, 1, fields[0], file) != fields[0])
            return 1;
        struct stream stream = {0, fields[0], 0, fields[1], (uint16_t)fields[2], (uint16_t)fields[3]};
        ++counts[decode_stream(&stream, source, target)];
        free(source);
        free(target);
    }
    fclose(file);
    printf("%d decoded, %d refused\n", counts[0], counts[1]);
    return 0;
}
