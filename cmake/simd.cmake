# native/cpu/simd/*.cc is compiled once per instruction set, as its own object, inside the namespace that AT_MOE_SIMD_NS
# names; native/cpu/*.cc sees AT_MOE_HAVE_<SET>=1 for each set and picks one at run time.
#
# Inline functions of shared headers are emitted by every set, and the linker keeps the first copy it sees. The sets are
# therefore linked after all other objects, lowest first: no code can be bound to a copy from a set above its own.
#
# Sets that differ from another by instructions for products of bytes or of pairs of bf16 are those products alone.
add_library(at_moe_simd INTERFACE)
set(AT_MOE_SIMD_OBJECTS "")
at_moe_layer_sources(simd_sources cpu/simd)

set(integer_sources ${simd_sources})
list(FILTER integer_sources INCLUDE REGEX "/(dots|integers)\\.cc$")
set(matrix_sources ${simd_sources})
list(FILTER matrix_sources INCLUDE REGEX "/(matrix_dots|integers)\\.cc$")
set(pair_sources ${simd_sources})
list(FILTER pair_sources INCLUDE REGEX "/(pair_dots|pairs)\\.cc$")
set(tile_sources ${simd_sources})
list(FILTER tile_sources INCLUDE REGEX "/(pair_tiles|pairs)\\.cc$")
list(FILTER simd_sources EXCLUDE REGEX "/(pair|matrix)[^/]*\\.cc$")

function(at_moe_compile_simd_objects target name sources)
  string(TOUPPER ${name} upper)
  add_library(${target} OBJECT ${sources})
  target_link_libraries(${target} PRIVATE at_moe_options at_moe_highway)
  target_compile_options(${target} PRIVATE ${ARGN})
  target_compile_definitions(${target} PRIVATE AT_MOE_SIMD_NS=${name} AT_MOE_SIMD_${upper}=1)
endfunction()

function(at_moe_add_simd_objects name sources)
  string(TOUPPER ${name} upper)
  target_compile_definitions(at_moe_simd INTERFACE AT_MOE_HAVE_${upper}=1)
  at_moe_compile_simd_objects(at_moe_simd_${name} ${name} "${sources}" ${ARGN})
  list(APPEND AT_MOE_SIMD_OBJECTS $<TARGET_OBJECTS:at_moe_simd_${name}>)
  set(AT_MOE_SIMD_OBJECTS "${AT_MOE_SIMD_OBJECTS}" PARENT_SCOPE)
endfunction()

macro(at_moe_add_simd_set name)
  at_moe_add_simd_objects(${name} "${simd_sources}" ${ARGN})
endmacro()

macro(at_moe_add_integer_set name)
  at_moe_add_simd_objects(${name} "${integer_sources}" ${ARGN})
endmacro()

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  # Highway would ask for AES in every set; no kernel uses it. The run-time check of a set is its psABI level:
  # __builtin_cpu_supports("x86-64-v3") and its like (gcc 12, clang 17), or the features listed there.
  target_compile_definitions(at_moe_highway INTERFACE HWY_DISABLE_PCLMUL_AES)
  at_moe_add_simd_set(base -march=x86-64-v2) # HWY_SSE4
  at_moe_add_simd_set(avx2 -march=x86-64-v3) # HWY_AVX2, with FMA, F16C, BMI2
  at_moe_add_integer_set(avxvnni -march=x86-64-v3 -mavxvnni)
  at_moe_add_simd_set(avx512 -march=x86-64-v4) # HWY_AVX3: AVX-512 F, BW, CD, DQ, VL
  at_moe_add_integer_set(avx512vnni -march=x86-64-v4 -mavx512vnni)
  at_moe_add_simd_objects(avx512bf16 "${pair_sources}" -march=x86-64-v4 -mavx512bf16)
  if(CMAKE_SYSTEM_NAME STREQUAL "Linux") # which lends the tiles on request
    at_moe_add_simd_objects(amx "${tile_sources}" -march=x86-64-v4 -mavx512bf16 -mamx-tile -mamx-bf16)
    # With the tiles of cpu/simd/tiles_emulated.h, for the addon with the emulated device.
    at_moe_compile_simd_objects(at_moe_simd_emulated_amx amx "${tile_sources}" -march=x86-64-v4)
    target_compile_definitions(at_moe_simd_emulated_amx PRIVATE AT_MOE_EMULATED_TILES=1)
    set_target_properties(at_moe_simd_emulated_amx PROPERTIES EXCLUDE_FROM_ALL ON)
  endif()
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
  # Highway's functions ask for +crypto, and are inlined only where it is allowed; no kernel uses it.
  at_moe_add_simd_set(base -march=armv8-a+crypto) # NEON
  at_moe_add_integer_set(dotprod -march=armv8.2-a+crypto+dotprod)
  at_moe_add_simd_objects(i8mm "${matrix_sources}" -march=armv8.2-a+crypto+dotprod+i8mm)
  at_moe_add_simd_objects(neonbf16 "${pair_sources}" -march=armv8.2-a+crypto+bf16)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # Its scheduler would load what a tile reads ahead, and spill the tile's sums for it.
    set_source_files_properties(${simd_sources} ${pair_sources} ${matrix_sources}
                                PROPERTIES COMPILE_OPTIONS -fno-schedule-insns)
  endif()
else()
  at_moe_add_simd_set(base) # what the compiler's defaults allow
endif()
