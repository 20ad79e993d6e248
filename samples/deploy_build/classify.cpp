// classify.c in C++: the context in a unique_ptr, two threads, buffers of the sizes that the library reports.
#include <digits_resnet.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <memory>
#include <vector>

using Model = std::unique_ptr<digits_resnet_context, decltype(&digits_resnet_destroy)>;

int main(int argc, char **argv)
{
    std::vector<float> image(digits_resnet_input(0)->bytes / sizeof(float));
    std::vector<float> logits(digits_resnet_output(0)->bytes / sizeof(float));
    const auto bytes = static_cast<std::streamsize>(digits_resnet_input(0)->bytes);
    if (argc != 2 || !std::ifstream(argv[1], std::ios::binary).read(reinterpret_cast<char *>(image.data()), bytes)) {
        std::fprintf(stderr, "usage: %s IMAGE.f32\n", argv[0]);
        return 2;
    }

    const Model model(digits_resnet_create(), digits_resnet_destroy);
    const void *inputs[] = {image.data()};
    void *outputs[] = {logits.data()};
    if (!model || digits_resnet_set_threads(model.get(), 2) != DIGITS_RESNET_OK ||
        digits_resnet_run(model.get(), inputs, outputs) != DIGITS_RESNET_OK) {
        std::fprintf(stderr, "%s\n", digits_resnet_last_error(model.get()));
        return 1;
    }
    std::printf("%s: %d\n", argv[1], static_cast<int>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    return 0;
}
