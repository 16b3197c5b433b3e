// The bytes of one character in a JSON string (RFC 8259, section 7): UTF-8 without overlong forms and surrogates
// (RFC 3629), or an escape; \u escapes of surrogates come in pairs, which are one character.
#pragma once

#include <cstdint>

namespace at_moe {

// What has been read of the character. kBetween: nothing.
enum class CharState : int32_t {
  kBetween,
  kMore1,  // any continuation bytes
  kMore2,
  kMore3,
  kAfterE0,
  kAfterED,
  kAfterF0,
  kAfterF4,
  kEscape,
  kHex4,  // hexadecimal digits of \u that are missing
  kHex3,
  kHex2,
  kHex1,
  kHexD,   // after \ud
  kHigh2,  // of a high surrogate
  kHigh1,
  kPairEscape,
  kPairU,
  kPairD,
  kPairSecond,
  kDead
};

constexpr bool is_continuation(uint8_t byte) { return byte >= 0x80 && byte <= 0xBF; }

constexpr bool is_hex(uint8_t byte) {
  const uint8_t lower = byte | 0x20;
  return (byte >= '0' && byte <= '9') || (lower >= 'a' && lower <= 'f');
}

constexpr CharState first_byte(uint8_t byte) {
  using enum CharState;
  if (byte == '\\') return kEscape;
  if (byte < 0x20 || byte == '"') return kDead;
  if (byte < 0x80) return kBetween;
  if (byte < 0xC2) return kDead;
  if (byte < 0xE0) return kMore1;
  if (byte == 0xE0) return kAfterE0;
  if (byte == 0xED) return kAfterED;
  if (byte < 0xF0) return kMore2;
  if (byte == 0xF0) return kAfterF0;
  if (byte < 0xF4) return kMore3;
  return byte == 0xF4 ? kAfterF4 : kDead;
}

constexpr CharState escaped_byte(uint8_t byte) {
  using enum CharState;
  switch (byte) {
    case 'u': return kHex4;
    case '"':
    case '\\':
    case '/':
    case 'b':
    case 'f':
    case 'n':
    case 'r':
    case 't': return kBetween;
    default: return kDead;
  }
}

constexpr CharState next_char_state(CharState state, uint8_t byte) {
  using enum CharState;
  const uint8_t lower = byte | 0x20;
  auto when = [](bool condition, CharState next) { return condition ? next : kDead; };
  switch (state) {
    case kBetween: return first_byte(byte);
    case kMore1: return when(is_continuation(byte), kBetween);
    case kMore2: return when(is_continuation(byte), kMore1);
    case kMore3: return when(is_continuation(byte), kMore2);
    case kAfterE0: return when(byte >= 0xA0 && byte <= 0xBF, kMore1);
    case kAfterED: return when(byte >= 0x80 && byte <= 0x9F, kMore1);
    case kAfterF0: return when(byte >= 0x90 && byte <= 0xBF, kMore2);
    case kAfterF4: return when(byte >= 0x80 && byte <= 0x8F, kMore2);
    case kEscape: return escaped_byte(byte);
    case kHex4: return lower == 'd' ? kHexD : when(is_hex(byte), kHex3);
    case kHex3: return when(is_hex(byte), kHex2);
    case kHex2: return when(is_hex(byte), kHex1);
    case kHex1: return when(is_hex(byte), kBetween);
    case kHexD:
      if (byte >= '0' && byte <= '7') return kHex2;
      return when(byte == '8' || byte == '9' || lower == 'a' || lower == 'b', kHigh2);
    case kHigh2: return when(is_hex(byte), kHigh1);
    case kHigh1: return when(is_hex(byte), kPairEscape);
    case kPairEscape: return when(byte == '\\', kPairU);
    case kPairU: return when(byte == 'u', kPairD);
    case kPairD: return when(lower == 'd', kPairSecond);
    case kPairSecond: return when(lower >= 'c' && lower <= 'f', kHex2);
    case kDead: return kDead;
  }
  return kDead;
}

}  // namespace at_moe
