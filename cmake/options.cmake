# Compile and link options that every object of the addon shares.
find_package(Threads REQUIRED)

add_library(at_moe_options INTERFACE)
target_include_directories(at_moe_options INTERFACE "${PROJECT_SOURCE_DIR}/native")
# Kernels write their fused multiply-adds out; elsewhere none may appear, or bits would depend on the compiler. Nobody reads
# errno or floating-point traps, and without them loops over exp and sqrt can be vectorised.
target_compile_options(at_moe_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-ffp-contract=off;-fno-math-errno;-fno-trapping-math>)
if(AT_MOE_WERROR)
  target_compile_options(at_moe_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()
target_link_libraries(at_moe_options INTERFACE Threads::Threads)

if(AT_MOE_SANITIZE)
  set(sanitize -fsanitize=${AT_MOE_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all -g)
  target_compile_options(at_moe_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:${sanitize}>)
  target_link_options(at_moe_options INTERFACE -fsanitize=${AT_MOE_SANITIZE})
endif()

function(at_moe_link_options target)
  if(APPLE)
    target_link_options(${target} PRIVATE -undefined dynamic_lookup "-Wl,-exported_symbol,_napi_*"
                        "-Wl,-exported_symbol,_node_api_*")
  elseif(UNIX)
    set(exports "${PROJECT_SOURCE_DIR}/cmake/exports.map")
    target_link_options(${target} PRIVATE "-Wl,--version-script=${exports}" -Wl,--gc-sections)
    set_property(TARGET ${target} APPEND PROPERTY LINK_DEPENDS "${exports}")
    if(NOT AT_MOE_SANITIZE)
      target_link_options(${target} PRIVATE -static-libgcc -static-libstdc++)
    endif()
  endif()
endfunction()
