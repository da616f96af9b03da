// AVX512 written out in C++, for a processor that has AVX2 alone: included before everything else, it lets the kernels of
// the levels x86-64-v4 and x86-64-v4-vnni compile and run there, at a fortieth of the speed. What each function does is
// Intel's description of the instruction. To make one differ is what the test of the levels has to notice.
#pragma once
#include <immintrin.h>
#include <cstring>
#include <cstdint>
#include <cmath>
#include <algorithm>
#include <vector>
#include <atomic>
#include <omp.h>
namespace emulated {
template <class T, int N> struct A { T v[N]; };
template <class T, int N, class V> inline A<T,N> ld(V v) { A<T,N> a; static_assert(sizeof a == sizeof v); std::memcpy(&a, &v, sizeof a); return a; }
template <class V, class T, int N> inline V st(const A<T,N> &a) { V v; static_assert(sizeof a == sizeof v); std::memcpy(&v, &a, sizeof v); return v; }
inline __m512 fmadd(__m512 a, __m512 b, __m512 c) { auto x=ld<float,16>(a),y=ld<float,16>(b),z=ld<float,16>(c); for(int i=0;i<16;i++) z.v[i]=__builtin_fmaf(x.v[i],y.v[i],z.v[i]); return st<__m512>(z); }
inline __m512i absb(__m512i a) { auto x=ld<int8_t,64>(a); for(auto &e:x.v) e=int8_t(e<0?-e:e); return st<__m512i>(x); }
inline __m256 low(__m512 a) { auto x=ld<float,16>(a); A<float,8> r; std::memcpy(&r,&x,32); return st<__m256>(r); }
inline __m256 half(__m512 a, int i) { auto x=ld<float,16>(a); A<float,8> r; std::memcpy(&r,x.v+8*i,32); return st<__m256>(r); }
inline __m256i to16(__m512i a) { auto x=ld<int32_t,16>(a); A<int16_t,16> r; for(int i=0;i<16;i++) r.v[i]=int16_t(x.v[i]); return st<__m256i>(r); }
inline __m128i to8(__m512i a) { auto x=ld<int32_t,16>(a); A<int8_t,16> r; for(int i=0;i<16;i++) r.v[i]=int8_t(x.v[i]); return st<__m128i>(r); }
inline __m512i i8(__m128i a) { auto x=ld<int8_t,16>(a); A<int32_t,16> r; for(int i=0;i<16;i++) r.v[i]=x.v[i]; return st<__m512i>(r); }
inline __m512i u8(__m128i a) { auto x=ld<uint8_t,16>(a); A<int32_t,16> r; for(int i=0;i<16;i++) r.v[i]=x.v[i]; return st<__m512i>(r); }
inline __m512i u16(__m256i a) { auto x=ld<uint16_t,16>(a); A<int32_t,16> r; for(int i=0;i<16;i++) r.v[i]=x.v[i]; return st<__m512i>(r); }
inline __m512 ph(__m256i a) { A<float,16> r; auto x=ld<uint16_t,16>(a); for(int i=0;i<16;i++) r.v[i]=_cvtsh_ss(x.v[i]); return st<__m512>(r); }
inline __m512i dpbusd(__m512i s, __m512i w, __m512i x) { auto r=ld<int32_t,16>(s); auto a=ld<uint8_t,64>(w); auto b=ld<int8_t,64>(x); for(int i=0;i<16;i++) for(int j=0;j<4;j++) r.v[i]+=int(a.v[4*i+j])*int(b.v[4*i+j]); return st<__m512i>(r); }
inline __m512i madd(__m512i a, __m512i b) { auto x=ld<int16_t,32>(a),y=ld<int16_t,32>(b); A<int32_t,16> r; for(int i=0;i<16;i++) r.v[i]=int(x.v[2*i])*y.v[2*i]+int(x.v[2*i+1])*y.v[2*i+1]; return st<__m512i>(r); }
inline __m512i maddubs(__m512i a, __m512i b) { auto x=ld<uint8_t,64>(a); auto y=ld<int8_t,64>(b); A<int16_t,32> r; for(int i=0;i<32;i++){ int t=int(x.v[2*i])*y.v[2*i]+int(x.v[2*i+1])*y.v[2*i+1]; r.v[i]=int16_t(t>32767?32767:t<-32768?-32768:t);} return st<__m512i>(r); }
inline uint16_t mask32(__m512i a) { auto x=ld<int32_t,16>(a); uint16_t m=0; for(int i=0;i<16;i++) if(x.v[i]<0) m|=uint16_t(1u<<i); return m; }
inline uint64_t mask8(__m512i a) { auto x=ld<int8_t,64>(a); uint64_t m=0; for(int i=0;i<64;i++) if(x.v[i]<0) m|=uint64_t(1)<<i; return m; }
inline __m512i masksub(__m512i src, uint64_t m, __m512i a, __m512i b) { auto s=ld<int8_t,64>(src),x=ld<int8_t,64>(a),y=ld<int8_t,64>(b); for(int i=0;i<64;i++) if(m>>i&1) s.v[i]=int8_t(x.v[i]-y.v[i]); return st<__m512i>(s); }
inline __m512 shuf4(__m512 a, __m512 b, int c) { auto x=ld<float,16>(a),y=ld<float,16>(b); A<float,16> r; for(int i=0;i<4;i++){ int s=c>>(2*i)&3; std::memcpy(r.v+4*i,(i<2?x.v:y.v)+4*s,16);} return st<__m512>(r); }
inline __m512 shuf(__m512 a, __m512 b, int c) { auto x=ld<float,16>(a),y=ld<float,16>(b); A<float,16> r; for(int l=0;l<4;l++) for(int i=0;i<4;i++) r.v[4*l+i]=(i<2?x.v:y.v)[4*l+(c>>(2*i)&3)]; return st<__m512>(r); }
}
#define _mm512_fmadd_ps emulated::fmadd
#define _mm512_abs_epi8 emulated::absb
#define _mm512_castps512_ps256 emulated::low
#undef _mm512_extractf32x8_ps
#define _mm512_extractf32x8_ps emulated::half
#define _mm512_cvtepi32_epi16 emulated::to16
#define _mm512_cvtepi32_epi8 emulated::to8
#define _mm512_cvtepi8_epi32 emulated::i8
#define _mm512_cvtepu8_epi32 emulated::u8
#define _mm512_cvtepu16_epi32 emulated::u16
#define _mm512_cvtph_ps emulated::ph
#define _mm512_dpbusd_epi32 emulated::dpbusd
#define _mm512_madd_epi16 emulated::madd
#define _mm512_maddubs_epi16 emulated::maddubs
#define _mm512_movepi32_mask emulated::mask32
#define _mm512_movepi8_mask emulated::mask8
#define _mm512_mask_sub_epi8 emulated::masksub
#undef _mm512_shuffle_f32x4
#define _mm512_shuffle_f32x4 emulated::shuf4
#undef _mm512_shuffle_ps
#define _mm512_shuffle_ps emulated::shuf
#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512DQ__ 1
#define __AVX512VL__ 1
#ifdef EMULATE_VNNI
#define __AVX512VNNI__ 1
#endif
#define asm(...) // holds a vector in a register that is not there
