// SPDX-License-Identifier: Apache-2.0
// Values of the options that choose the device. What the build lacks is no choice.
#include "launcher/app.h"

#include "kernels/kern.h"

const char *app_any_device_choice(size_t i) // in the order of kern_kind
{
    static const char *const names[] = {"cpu", "cuda"};
    return i < 2 ? names[i] : NULL;
}

const char *app_device_choice(size_t i)
{
#ifdef LOSA_CUDA
    return app_any_device_choice(i);
#else
    return i == KERN_CPU ? app_any_device_choice(i) : NULL;
#endif
}

const char *app_precision_choice(size_t i) // in the order of kern_precision
{
    static const char *const names[] = {"auto", "f32"};
    return i < 2 ? names[i] : NULL;
}
