# Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE.
#
# Compiler settings of every target, the platform's name, and kvquant_isa_sources.

set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
find_package(Threads REQUIRED)

# The name of the folder in the jar, spelled as DJL spells its classifiers: linux-x86_64, osx-aarch64, ...
string(TOLOWER "${CMAKE_SYSTEM_NAME}" kvquant_os)
string(REPLACE "darwin" "osx" kvquant_os "${kvquant_os}")
string(TOLOWER "${CMAKE_SYSTEM_PROCESSOR}" kvquant_arch)
string(REPLACE "amd64" "x86_64" kvquant_arch "${kvquant_arch}")
string(REPLACE "arm64" "aarch64" kvquant_arch "${kvquant_arch}")
set(KVQUANT_PLATFORM "${kvquant_os}-${kvquant_arch}")

if(CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
  # The compiler must not contract a*b+c by itself: variants of one operator would then differ from its portable form.
  add_compile_options(-Wall -Wextra -ffp-contract=off)
  if(KVQUANT_WERROR)
    add_compile_options(-Werror)
  endif()
  if(KVQUANT_SANITIZE)
    add_compile_options("-fsanitize=${KVQUANT_SANITIZE}" -fno-sanitize-recover=all -fno-omit-frame-pointer -g)
    add_link_options("-fsanitize=${KVQUANT_SANITIZE}")
  endif()
elseif(KVQUANT_SANITIZE)
  message(FATAL_ERROR "KVQUANT_SANITIZE=${KVQUANT_SANITIZE} needs g++ or clang++, but the compiler is "
                      "${CMAKE_CXX_COMPILER_ID}. Set CXX, or leave KVQUANT_SANITIZE empty.")
endif()

# kvquant_isa_sources(TARGET ISA FLAGS SOURCE...): compiles the sources with FLAGS and KVQUANT_ISA=ISA and adds them to
# TARGET, which learns of them by KVQUANT_HAVE_<ISA>. Elsewhere than on x86-64 it adds nothing.
#
# An inline function of a header may be emitted by several objects, and the linker keeps the first one. The portable
# objects come first on the command line, then these in the order of the calls, from the oldest instruction set to the
# newest, so that portable code never reaches an instruction that the processor lacks.
function(kvquant_isa_sources target isa flags)
  if(NOT ARGN OR NOT kvquant_arch STREQUAL "x86_64" OR NOT CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
    return()
  endif()
  set(objects "${target}_${isa}")
  string(TOUPPER "${isa}" macro)
  add_library(${objects} OBJECT ${ARGN})
  target_include_directories(${objects} PRIVATE src)
  target_compile_options(${objects} PRIVATE ${flags})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    # g++ 12 finds uninitialized values in its own avx512fintrin.h (GCC bug 105593).
    target_compile_options(${objects} PRIVATE -Wno-uninitialized -Wno-maybe-uninitialized)
  endif()
  target_compile_definitions(${objects} PRIVATE "KVQUANT_ISA=${isa}" "KVQUANT_ISA_${macro}=1")
  target_compile_definitions(${target} PRIVATE "KVQUANT_HAVE_${macro}=1")
  target_sources(${target} PRIVATE $<TARGET_OBJECTS:${objects}>)
endfunction()
