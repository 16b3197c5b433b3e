// The checks of the program that proves the emulated device: each runs kernels and returns what is wrong, else "".
#pragma once

#include <map>
#include <string>

// Kernels with a bug planted, and with `broken` false the same kernels without it.
const std::map<std::string, std::string (*)(bool broken)>& bugs();
const std::map<std::string, std::string (*)(bool broken)>& hopper_bugs();
// What single instructions do.
const std::map<std::string, std::string (*)()>& instructions();
const std::map<std::string, std::string (*)()>& hopper_instructions();

std::string differs(const char* what, int index, double actual, double expected, double tolerance = 0);
