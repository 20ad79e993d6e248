# Debian's cross compiler (gcc-aarch64-linux-gnu, libc6-dev-arm64-cross) and emulator (qemu-user) for 64-bit ARM.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
find_program(AARCH64_CXX aarch64-linux-gnu-g++) # of g++-aarch64-linux-gnu, if C++ is wanted
if(AARCH64_CXX)
  set(CMAKE_CXX_COMPILER ${AARCH64_CXX})
else()
  set(CMAKE_CXX_COMPILER NOTFOUND)
endif()
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L /usr/aarch64-linux-gnu)
