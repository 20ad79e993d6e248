/* What the processor can do beyond the instructions that the library is made for. Included by the generated driver.
 *
 * On machines with cores of several kinds, both systems report what all of them have.
 */
enum { DOTPROD = 1, I8MM = 2 };

#if defined(__APPLE__)
#include <sys/sysctl.h>

static unsigned processor_has(const char *feature)
{
    int32_t present = 0;
    size_t size = sizeof present;
    return sysctlbyname(feature, &present, &size, NULL, 0) == 0 && present;
}

static unsigned processor_features(void)
{
    return (processor_has("hw.optional.arm.FEAT_DotProd") ? DOTPROD : 0u) |
           (processor_has("hw.optional.arm.FEAT_I8MM") ? I8MM : 0u);
}
#elif defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>

/* Bits 20 of AT_HWCAP (ASIMDDP) and 13 of AT_HWCAP2 (I8MM): Linux, arch/arm64/include/uapi/asm/hwcap.h. */
static unsigned processor_features(void)
{
    return (getauxval(AT_HWCAP) >> 20 & 1 ? DOTPROD : 0u) | (getauxval(AT_HWCAP2) >> 13 & 1 ? I8MM : 0u);
}
#else
static unsigned processor_features(void) { return 0; }
#endif
