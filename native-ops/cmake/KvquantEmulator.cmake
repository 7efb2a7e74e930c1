# Copyright 2026 The djl-kvquant authors. Licensed under the Apache License, Version 2.0. See LICENSE.
#
# Builds the CUDA sources with the C++ compiler, for tests on machines without a GPU: emulator/ runs their kernels.

set(KVQUANT_EMULATED_ARCH 900 CACHE STRING "The GPU whose code the emulator runs: 800 (A100), 860, 890 or 900 (H100)")

# kvquant_emulated_library(NAME SOURCE...): lib<NAME>.so, where the headers of CUDA are found beside nvcc. It is neither
# installed nor part of a jar.
function(kvquant_emulated_library name)
  kvquant_find_nvcc(nvcc)
  get_filename_component(toolkit "${nvcc}" DIRECTORY)
  get_filename_component(toolkit "${toolkit}" DIRECTORY)
  find_path(headers cuda_fp16.h PATHS "${toolkit}/include" NO_CACHE NO_DEFAULT_PATH)
  if(NOT headers OR NOT KVQUANT_PLATFORM STREQUAL "linux-x86_64" OR NOT CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    message(STATUS "lib${name}, which tests CUDA kernels on the CPU, is not built: it needs nvcc's headers, g++ and Linux "
                   "on x86-64")
    return()
  endif()
  set(emulator emulator/async.cpp emulator/block.cpp emulator/definitions.cpp emulator/fiber.cpp emulator/runtime.cpp)
  set(kernels ${ARGN})
  list(REMOVE_ITEM kernels src/cuda/stream.cu)  # emulator/runtime.cpp has what it has
  # What nvcc accepts, g++ warns of: pragmas, and reads of memory as another type.
  set(cuda_sources ${kernels})
  list(FILTER cuda_sources INCLUDE REGEX "[.]cu$")
  set_source_files_properties(${cuda_sources} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-w;-fno-strict-aliasing")
  add_library(${name} SHARED ${kernels} ${emulator})
  target_include_directories(${name} PRIVATE emulator . src)
  target_include_directories(${name} SYSTEM PRIVATE "${headers}")
  target_compile_definitions(${name} PRIVATE KVQUANT_EMULATED KVQUANT_EMULATED_ARCH=${KVQUANT_EMULATED_ARCH})
  target_compile_options(${name} PRIVATE "SHELL:-x c++" "SHELL:-include cuda_runtime.h" -O1 -Wno-unknown-pragmas)
  target_link_libraries(${name} PRIVATE ${CMAKE_DL_LIBS})
endfunction()
