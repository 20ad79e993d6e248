/* Says which digit is in a picture: a file of 16 x 16 floats from 0 (paper) to 1 (ink). */
#include <digits_resnet.h>

#include <stdio.h>

int main(int argc, char **argv)
{
    static float image[DIGITS_RESNET_INPUT_0_BYTES / sizeof(float)];
    static float logits[DIGITS_RESNET_OUTPUT_0_BYTES / sizeof(float)];
    const void *inputs[] = {image};
    void *outputs[] = {logits};

    FILE *file = argc == 2 ? fopen(argv[1], "rb") : NULL;
    if (!file || fread(image, sizeof image, 1, file) != 1) {
        fprintf(stderr, "usage: %s IMAGE.f32\n", argv[0]);
        return 2;
    }
    fclose(file);

    digits_resnet_context *model = digits_resnet_create();
    if (!model) {
        fprintf(stderr, "out of memory\n");
        return 1;
    }
    if (digits_resnet_run(model, inputs, outputs) != DIGITS_RESNET_OK) {
        fprintf(stderr, "%s\n", digits_resnet_last_error(model));
        return 1;
    }
    digits_resnet_destroy(model);

    size_t best = 0;
    for (size_t digit = 1; digit < sizeof logits / sizeof *logits; ++digit)
        if (logits[digit] > logits[best])
            best = digit;
    printf("%s: %zu\n", argv[1], best);
    return 0;
}
